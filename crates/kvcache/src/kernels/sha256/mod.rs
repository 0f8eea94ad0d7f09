//! SHA-256 (FIPS 180-4) over whole 64-byte blocks; padding is the caller's work.

mod portable;
#[cfg(target_arch = "x86_64")]
mod sha_ni;

use infer_accel_tensor::simd::Tier;

/// Bytes that one compression takes in.
pub(crate) const BLOCK_BYTES: usize = 64;
/// Bytes of a digest.
pub(crate) const DIGEST_BYTES: usize = 32;

const INITIAL_STATE: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

#[rustfmt::skip]
const ROUND_CONSTANTS: [u32; 64] = [
    0x428a_2f98, 0x7137_4491, 0xb5c0_fbcf, 0xe9b5_dba5, 0x3956_c25b, 0x59f1_11f1, 0x923f_82a4, 0xab1c_5ed5,
    0xd807_aa98, 0x1283_5b01, 0x2431_85be, 0x550c_7dc3, 0x72be_5d74, 0x80de_b1fe, 0x9bdc_06a7, 0xc19b_f174,
    0xe49b_69c1, 0xefbe_4786, 0x0fc1_9dc6, 0x240c_a1cc, 0x2de9_2c6f, 0x4a74_84aa, 0x5cb0_a9dc, 0x76f9_88da,
    0x983e_5152, 0xa831_c66d, 0xb003_27c8, 0xbf59_7fc7, 0xc6e0_0bf3, 0xd5a7_9147, 0x06ca_6351, 0x1429_2967,
    0x27b7_0a85, 0x2e1b_2138, 0x4d2c_6dfc, 0x5338_0d13, 0x650a_7354, 0x766a_0abb, 0x81c2_c92e, 0x9272_2c85,
    0xa2bf_e8a1, 0xa81a_664b, 0xc24b_8b70, 0xc76c_51a3, 0xd192_e819, 0xd699_0624, 0xf40e_3585, 0x106a_a070,
    0x19a4_c116, 0x1e37_6c08, 0x2748_774c, 0x34b0_bcb5, 0x391c_0cb3, 0x4ed8_aa4a, 0x5b9c_ca4f, 0x682e_6ff3,
    0x748f_82ee, 0x78a5_636f, 0x84c8_7814, 0x8cc7_0208, 0x90be_fffa, 0xa450_6ceb, 0xbef9_a3f7, 0xc671_78f2,
];

/// Which instructions compute SHA-256.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kernel {
    /// Plain integer arithmetic, on every machine.
    Portable,
    /// The SHA extensions of x86-64.
    #[cfg(target_arch = "x86_64")]
    ShaNi,
}

impl Kernel {
    /// The fastest kernel of this machine that `tier` permits.
    pub(crate) fn for_tier(tier: Tier) -> Self {
        #[cfg(target_arch = "x86_64")]
        if tier > Tier::Portable && sha_ni::is_supported() {
            return Self::ShaNi;
        }
        let _ = tier;
        Self::Portable
    }

    /// The digest of a message that already carries its padding.
    ///
    /// Bytes after the last whole block are not read.
    pub(crate) fn digest(self, padded: &[u8]) -> [u8; DIGEST_BYTES] {
        match self {
            Self::Portable => portable::digest(padded),
            #[cfg(target_arch = "x86_64")]
            Self::ShaNi => sha_ni::digest(padded),
        }
    }
}

/// Bytes to keep free behind a message for its padding.
pub(crate) const PADDING_BYTES: usize = 9 + BLOCK_BYTES - 1;

/// Pads the message in `buffer[..length]` in place and returns its padded length.
///
/// `buffer` must be at least [`PADDING_BYTES`] longer than the message.
pub(crate) fn pad(buffer: &mut [u8], length: usize) -> usize {
    let padded = (length + 9).next_multiple_of(BLOCK_BYTES);
    buffer[length] = 0x80;
    buffer[length + 1..padded - 8].fill(0);
    buffer[padded - 8..padded].copy_from_slice(&(8 * length as u64).to_be_bytes());
    padded
}

fn digest_of_state(state: [u32; 8]) -> [u8; DIGEST_BYTES] {
    let mut digest = [0; DIGEST_BYTES];
    for (bytes, word) in digest.chunks_exact_mut(4).zip(state) {
        bytes.copy_from_slice(&word.to_be_bytes());
    }
    digest
}

#[cfg(test)]
mod tests {
    use super::*;
    use infer_accel_tensor::simd;

    fn padded(message: &[u8]) -> Vec<u8> {
        let mut bytes = message.to_vec();
        bytes.resize(message.len() + PADDING_BYTES, 0xee);
        let padded = pad(&mut bytes, message.len());
        bytes.truncate(padded);
        bytes
    }

    fn hex(digest: [u8; DIGEST_BYTES]) -> String {
        digest.iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"))
    }

    /// The examples of FIPS 180-4 and of NIST's "SHA-256 long" vector (a million times `a`).
    #[test]
    fn digests_of_the_standard() {
        let million = vec![b'a'; 1_000_000];
        let cases: [(&[u8], &str); 4] = [
            (b"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
            (b"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
            (
                b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
                "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1",
            ),
            (&million, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"),
        ];
        for &tier in simd::available() {
            for (message, expected) in cases {
                assert_eq!(hex(Kernel::for_tier(tier).digest(&padded(message))), expected, "{tier:?}");
            }
        }
    }

    #[test]
    fn tiers_agree_on_every_length_around_the_block() {
        for length in 0..300_usize {
            let message: Vec<u8> = (0..length).map(|i| (i * 131 + length) as u8).collect();
            let bytes = padded(&message);
            let expected = Kernel::Portable.digest(&bytes);
            for &tier in simd::available() {
                assert_eq!(Kernel::for_tier(tier).digest(&bytes), expected, "{tier:?}, {length} bytes");
            }
        }
    }
}
