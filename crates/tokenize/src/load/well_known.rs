//! Rank files that are published without a pattern, recognised by the SHA-256 of their content.
//!
//! The digests, patterns and special tokens are those of their publishers: tiktoken's `openai_public.py`, Meta's
//! Llama 3 and 4 `tokenizer.py`, Qwen's `tokenization_qwen.py`.

use sha2::{Digest, Sha256};

/// What a publisher says beside the ranks.
pub(super) struct WellKnown {
    digest: &'static str,
    pub(super) pattern: &'static str,
    special: Special,
    pub(super) eos: Option<&'static str>,
}

enum Special {
    Listed(&'static [(&'static str, u32)]),
    Llama3,
    Llama4,
    Qwen,
}

const GPT2_PATTERN: &str = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s";
const CL100K_PATTERN: &str = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s";
const O200K_PATTERN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const LLAMA3_PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN_PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const END_OF_TEXT: &str = "<|endoftext|>";

const WELL_KNOWN: [WellKnown; 7] = [
    WellKnown {
        // r50k_base, GPT-2's
        digest: "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930",
        pattern: GPT2_PATTERN,
        special: Special::Listed(&[(END_OF_TEXT, 50256)]),
        eos: Some(END_OF_TEXT),
    },
    WellKnown {
        // p50k_base
        digest: "94b5ca7dff4d00767bc256fdd1b27e5b17361d7b8a5f968547f9f23eb70d2069",
        pattern: GPT2_PATTERN,
        special: Special::Listed(&[(END_OF_TEXT, 50256)]),
        eos: Some(END_OF_TEXT),
    },
    WellKnown {
        // cl100k_base
        digest: "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
        pattern: CL100K_PATTERN,
        special: Special::Listed(&[
            (END_OF_TEXT, 100_257),
            ("<|fim_prefix|>", 100_258),
            ("<|fim_middle|>", 100_259),
            ("<|fim_suffix|>", 100_260),
            ("<|endofprompt|>", 100_276),
        ]),
        eos: Some(END_OF_TEXT),
    },
    WellKnown {
        // o200k_base
        digest: "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
        pattern: O200K_PATTERN,
        special: Special::Listed(&[(END_OF_TEXT, 199_999), ("<|endofprompt|>", 200_018)]),
        eos: Some(END_OF_TEXT),
    },
    WellKnown {
        // Llama 3's tokenizer.model
        digest: "82e9d31979e92ab929cd544440f129d9ecd797b69e327f80f17e1c50d5551b55",
        pattern: LLAMA3_PATTERN,
        special: Special::Llama3,
        eos: Some("<|end_of_text|>"),
    },
    WellKnown {
        // Llama 4's tokenizer.model
        digest: "d0bdbaf59b0762c8c807617e2d8ea51420eb1b1de266df2495be755c8e0ed6ed",
        pattern: O200K_PATTERN,
        special: Special::Llama4,
        eos: Some("<|end_of_text|>"),
    },
    WellKnown {
        // qwen.tiktoken
        digest: "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186",
        pattern: QWEN_PATTERN,
        special: Special::Qwen,
        eos: Some(END_OF_TEXT),
    },
];

/// The vocabulary with exactly this content, if it is a well-known one.
pub(super) fn recognise(content: &[u8]) -> Option<&'static WellKnown> {
    let digest = Sha256::digest(content);
    let digest: String = digest.iter().flat_map(|byte| [byte >> 4, byte & 15]).map(hex_digit).collect();
    WELL_KNOWN.iter().find(|known| known.digest == digest)
}

fn hex_digit(value: u8) -> char {
    char::from_digit(u32::from(value), 16).unwrap_or('0')
}

impl WellKnown {
    /// Contents and ids of its special tokens.
    pub(super) fn special_tokens(&self) -> Vec<(String, i64)> {
        match self.special {
            Special::Listed(list) => {
                list.iter().map(|&(content, id)| (content.to_owned(), i64::from(id))).collect()
            }
            Special::Llama3 => numbered(128_000, llama3_special_tokens()),
            Special::Llama4 => numbered(200_000, llama4_special_tokens()),
            Special::Qwen => numbered(151_643, qwen_special_tokens()),
        }
    }
}

fn numbered(first: i64, contents: impl Iterator<Item = String>) -> Vec<(String, i64)> {
    contents.zip(first..).collect()
}

fn llama3_special_tokens() -> impl Iterator<Item = String> {
    let reserved = |number: u32| format!("<|reserved_special_token_{number}|>");
    ["<|begin_of_text|>", "<|end_of_text|>"]
        .map(str::to_owned)
        .into_iter()
        .chain((0..4).map(reserved))
        .chain(["<|start_header_id|>", "<|end_header_id|>"].map(str::to_owned))
        .chain([reserved(4), "<|eot_id|>".to_owned()])
        .chain((5..251).map(reserved))
}

/// 2048 of them: named ones, those reserved for a purpose among them, and the rest.
fn llama4_special_tokens() -> impl Iterator<Item = String> {
    const TEXT: [&str; 10] = [
        "begin_of_text",
        "end_of_text",
        "fim_prefix",
        "fim_middle",
        "fim_suffix",
        "header_start",
        "header_end",
        "eom",
        "eot",
        "step",
    ];
    const VISION: [&str; 13] = [
        "image_start",
        "image_end",
        "vision_reserved_special_token_0",
        "vision_reserved_special_token_1",
        "tile_x_separator",
        "tile_y_separator",
        "vision_reserved_special_token_2",
        "vision_reserved_special_token_3",
        "vision_reserved_special_token_4",
        "vision_reserved_special_token_5",
        "image",
        "vision_reserved_special_token_6",
        "patch",
    ];
    let named = |names: &'static [&'static str]| names.iter().map(|&name| name.to_owned());
    let reserved = |purpose: &'static str, numbers: std::ops::Range<u32>| {
        numbers.map(move |number| format!("{purpose}reserved_special_token_{number}"))
    };
    let text = named(&TEXT)
        .chain(reserved("text_post_train_", 0..6))
        .chain(named(&["python_start", "python_end", "finetune_right_pad"]))
        .chain(reserved("text_post_train_", 8..69));
    let vision = named(&VISION).chain(reserved("vision_", 7..1048));
    let reasoning =
        reserved("reasoning_", 0..8).chain(named(&["reasoning_thinking_start", "reasoning_thinking_end"]));
    let rest = reserved("", 0..904);
    text.chain(vision).chain(reasoning).chain(rest).map(|name| format!("<|{name}|>"))
}

fn qwen_special_tokens() -> impl Iterator<Item = String> {
    let named = [END_OF_TEXT, "<|im_start|>", "<|im_end|>"].map(str::to_owned);
    named.into_iter().chain((0..205).map(|number| format!("<|extra_{number}|>")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_compared_as_the_publishers_write_them() {
        assert!(recognise(b"").is_none());
        // FIPS 180-2's example, to see that hexadecimal is written the same way round.
        let digest: String =
            Sha256::digest(b"abc").iter().flat_map(|byte| [byte >> 4, byte & 15]).map(hex_digit).collect();
        assert!(digest.starts_with("ba7816bf8f01cfea"));
        assert!(WELL_KNOWN.iter().all(|known| known.digest.len() == 64));
    }

    #[test]
    fn numbered_special_tokens_end_where_their_publishers_say() {
        let llama: Vec<_> = numbered(128_000, llama3_special_tokens());
        assert_eq!(llama.len(), 256);
        assert_eq!(llama[9], ("<|eot_id|>".to_owned(), 128_009));
        assert_eq!(llama[255], ("<|reserved_special_token_250|>".to_owned(), 128_255));
        let llama: Vec<_> = numbered(200_000, llama4_special_tokens());
        assert_eq!(llama.len(), 2048);
        assert_eq!(llama[8], ("<|eot|>".to_owned(), 200_008));
        assert_eq!(llama[80], ("<|image_start|>".to_owned(), 200_080));
        assert_eq!(llama[2047], ("<|reserved_special_token_903|>".to_owned(), 202_047));
        let qwen = numbered(151_643, qwen_special_tokens());
        assert_eq!(qwen.last(), Some(&("<|extra_204|>".to_owned(), 151_850)));
    }
}
