//! Number formats as the kernels see them.

use super::vector::Vector;
use infer_accel_tensor::{DType, float};

/// The formats that weights, adapters and activations may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    F32,
    F16,
    Bf16,
}

impl Format {
    /// The format of a dtype, if it is one of the three.
    pub(crate) const fn of(dtype: DType) -> Option<Self> {
        match dtype {
            DType::F32 => Some(Self::F32),
            DType::F16 => Some(Self::F16),
            DType::BF16 => Some(Self::Bf16),
            _ => None,
        }
    }

    /// Bytes of an element.
    pub(crate) const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// Whether a tile of this format keeps even columns apart from odd ones.
    pub(crate) const fn is_split(self) -> bool {
        matches!(self, Self::Bf16)
    }

    /// Reads one element; exact.
    ///
    /// # Safety
    ///
    /// `source` must be readable for [`Self::size`] bytes.
    #[inline(always)]
    pub(crate) unsafe fn read(self, source: *const u8) -> f32 {
        // SAFETY: the caller vouches for the bytes; no alignment is assumed.
        unsafe {
            match self {
                Self::F32 => source.cast::<f32>().read_unaligned(),
                Self::F16 => float::f16_to_f32(source.cast::<u16>().read_unaligned()),
                Self::Bf16 => float::bf16_to_f32(source.cast::<u16>().read_unaligned()),
            }
        }
    }
}

/// A [`Format`] as a type, so that a kernel is compiled for each.
pub(crate) trait Storage {
    /// The format.
    const FORMAT: Format;

    /// Bytes of an element.
    const SIZE: usize = Self::FORMAT.size();

    /// Reads `LANES` elements in order.
    ///
    /// # Safety
    ///
    /// As [`Vector`]; `source` must be readable for them.
    unsafe fn widen<V: Vector>(source: *const u8) -> V;

    /// Reads `2 · LANES` elements in the order of a tile: in order, or split where the format is split.
    ///
    /// # Safety
    ///
    /// As [`Vector`]; `source` must be readable for them.
    unsafe fn load<V: Vector>(source: *const u8) -> [V; 2];

    /// Writes `2 · LANES` elements in the order of a tile, each rounded once to nearest even. What is not a
    /// number must be canonical.
    ///
    /// # Safety
    ///
    /// As [`Vector`]; `target` must be writable for them.
    unsafe fn store<V: Vector>(values: [V; 2], target: *mut u8);

    /// Reads `2 · LANES` elements, those at even places apart from those at odd places.
    ///
    /// # Safety
    ///
    /// As [`Vector`]; `source` must be readable for them.
    #[inline(always)]
    unsafe fn load_split<V: Vector>(source: *const u8) -> [V; 2] {
        // SAFETY: the caller vouches for tier and bytes.
        unsafe { V::split([Self::widen(source), Self::widen(source.add(V::LANES * Self::SIZE))]) }
    }
}

/// binary32.
pub(crate) struct F32;

impl Storage for F32 {
    const FORMAT: Format = Format::F32;

    #[inline(always)]
    unsafe fn widen<V: Vector>(source: *const u8) -> V {
        // SAFETY: the caller vouches for tier and bytes.
        unsafe { V::load(source.cast()) }
    }

    #[inline(always)]
    unsafe fn load<V: Vector>(source: *const u8) -> [V; 2] {
        // SAFETY: the caller vouches for tier and bytes.
        unsafe { [V::load(source.cast()), V::load(source.cast::<f32>().add(V::LANES))] }
    }

    #[inline(always)]
    unsafe fn store<V: Vector>(values: [V; 2], target: *mut u8) {
        // SAFETY: the caller vouches for tier and bytes.
        unsafe {
            values[0].store(target.cast());
            values[1].store(target.cast::<f32>().add(V::LANES));
        }
    }
}

/// binary16.
pub(crate) struct F16;

impl Storage for F16 {
    const FORMAT: Format = Format::F16;

    #[inline(always)]
    unsafe fn widen<V: Vector>(source: *const u8) -> V {
        // SAFETY: the caller vouches for tier and bytes.
        unsafe { V::load_f16(source.cast()) }
    }

    #[inline(always)]
    unsafe fn load<V: Vector>(source: *const u8) -> [V; 2] {
        // SAFETY: the caller vouches for tier and bytes.
        unsafe { [V::load_f16(source.cast()), V::load_f16(source.cast::<u16>().add(V::LANES))] }
    }

    #[inline(always)]
    unsafe fn store<V: Vector>(values: [V; 2], target: *mut u8) {
        // SAFETY: the caller vouches for tier and bytes.
        unsafe {
            values[0].store_f16(target.cast());
            values[1].store_f16(target.cast::<u16>().add(V::LANES));
        }
    }
}

/// bfloat16.
pub(crate) struct Bf16;

impl Storage for Bf16 {
    const FORMAT: Format = Format::Bf16;

    #[inline(always)]
    unsafe fn widen<V: Vector>(source: *const u8) -> V {
        // SAFETY: the caller vouches for tier and bytes.
        unsafe { V::load_bf16(source.cast()) }
    }

    #[inline(always)]
    unsafe fn load<V: Vector>(source: *const u8) -> [V; 2] {
        // SAFETY: the caller vouches for tier and bytes.
        unsafe { V::load_bf16_split(source.cast()) }
    }

    #[inline(always)]
    unsafe fn store<V: Vector>(values: [V; 2], target: *mut u8) {
        // SAFETY: the caller vouches for tier and bytes.
        unsafe { V::store_bf16_split(values, target.cast()) }
    }

    #[inline(always)]
    unsafe fn load_split<V: Vector>(source: *const u8) -> [V; 2] {
        // SAFETY: the caller vouches for tier and bytes.
        unsafe { V::load_bf16_split(source.cast()) }
    }
}

/// binary32 that starts from nothing: what is read is −0.0, to which anything can be added without changing it.
pub(crate) struct Sums;

impl Storage for Sums {
    const FORMAT: Format = Format::F32;

    #[inline(always)]
    unsafe fn widen<V: Vector>(_source: *const u8) -> V {
        // SAFETY: the caller vouches for the tier.
        unsafe { V::splat(-0.0) }
    }

    #[inline(always)]
    unsafe fn load<V: Vector>(_source: *const u8) -> [V; 2] {
        // SAFETY: the caller vouches for the tier.
        unsafe { [V::splat(-0.0); 2] }
    }

    #[inline(always)]
    unsafe fn store<V: Vector>(values: [V; 2], target: *mut u8) {
        // SAFETY: the caller vouches for tier and bytes.
        unsafe { F32::store(values, target) }
    }
}
