//! Adapters and files of weights, as Python objects.
#![allow(unsafe_code)] // the buffer protocol hands out an address

use std::ffi::{CStr, c_int};
use std::path::PathBuf;
use std::ptr;

use infer_accel_lora::Error;
use infer_accel_lora::adapter::{
    self as core, BaseIndex, LayerKind, LoadOptions, Matrix, Place, checkpoint_files,
};
use infer_accel_lora::problem::Problem;
use infer_accel_lora::safetensors::{File, Limits, OpenOptions};
use infer_accel_tensor::{DType, ErrorKind};
use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;

use crate::errors::NativeError;
use crate::numbers::Count;
use crate::run::run;

/// Reading a file is always long enough to give the interpreter's lock away.
const FILE_WORK: usize = usize::MAX;

/// Code, tensor and text of each fault.
type Faults = Vec<(&'static str, String, String)>;

/// First element, shape and strides of a matrix within a tensor, in elements.
type PlaceTuple = (usize, (usize, usize), (isize, isize));

fn faults(problems: Vec<Problem>) -> Faults {
    problems.into_iter().map(|problem| (problem.code.code(), problem.tensor, problem.message)).collect()
}

fn place_tuple(place: Place) -> PlaceTuple {
    let ([rows, columns], [down, across]) = (place.shape, place.strides);
    (place.offset, (rows, columns), (down, across))
}

/// The bytes of a tensor of an adapter, which they keep alive. Read-only.
#[pyclass(frozen, module = "infer_accel._native.lora")]
pub(crate) struct AdapterTensor(core::Tensor);

#[pymethods]
impl AdapterTensor {
    /// Name of the number format.
    #[getter]
    fn dtype(&self) -> &'static str {
        self.0.dtype().name()
    }

    /// Entries of each axis.
    #[getter]
    fn shape(&self) -> Vec<usize> {
        self.0.shape().to_vec()
    }

    /// Bytes of all elements.
    #[getter]
    fn nbytes(&self) -> usize {
        self.0.bytes().len()
    }

    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        const FORMAT: &CStr = c"B";
        if view.is_null() {
            return Err(PyBufferError::new_err("no view to fill in"));
        }
        if flags & ffi::PyBUF_WRITABLE == ffi::PyBUF_WRITABLE {
            return Err(PyBufferError::new_err("the weights of an adapter are read-only: copy them"));
        }
        let bytes = slf.get().0.bytes();
        let (start, length) = (bytes.as_ptr(), bytes.len());
        // SAFETY: `view` is ours to fill in; the tensor is immutable and lives as long as `obj`, which the view owns.
        unsafe {
            (*view).obj = slf.into_any().into_ptr();
            (*view).buf = start.cast_mut().cast();
            (*view).len = length as isize;
            (*view).readonly = 1;
            (*view).itemsize = 1;
            (*view).ndim = 1;
            let has_format = flags & ffi::PyBUF_FORMAT == ffi::PyBUF_FORMAT;
            (*view).format = if has_format { FORMAT.as_ptr().cast_mut() } else { ptr::null_mut() };
            (*view).shape =
                if flags & ffi::PyBUF_ND == ffi::PyBUF_ND { &raw mut (*view).len } else { ptr::null_mut() };
            let has_strides = flags & ffi::PyBUF_STRIDES == ffi::PyBUF_STRIDES;
            (*view).strides = if has_strides { &raw mut (*view).itemsize } else { ptr::null_mut() };
            (*view).suboffsets = ptr::null_mut();
            (*view).internal = ptr::null_mut();
        }
        Ok(())
    }
}

fn tensor(tensor: &core::Tensor) -> AdapterTensor {
    AdapterTensor(tensor.clone())
}

/// A low-rank update of one module.
#[pyclass(frozen, get_all, module = "infer_accel._native.lora")]
pub(crate) struct AdapterLayer {
    /// The module in the base.
    path: String,
    /// The part of a pipeline that the module belongs to, or nothing.
    component: String,
    /// Linear, embedding, convolution or experts.
    kind: &'static str,
    /// The rank.
    rank: usize,
    /// What the scaling is made from.
    alpha: f64,
    /// What the product is multiplied by.
    scaling: f64,
    /// Whether the configuration says that the weight is stored transposed.
    fan_in_fan_out: bool,
    /// The first factor.
    lora_a: Py<AdapterTensor>,
    /// The second factor.
    lora_b: Py<AdapterTensor>,
    /// The lengths of rows of `DoRA`.
    magnitude: Option<Py<AdapterTensor>>,
    /// What is added to the module's bias.
    bias: Option<Py<AdapterTensor>>,
}

/// One low-rank update of one tensor of a base.
#[pyclass(frozen, get_all, module = "infer_accel._native.lora")]
pub(crate) struct AdapterUpdate {
    /// The tensor that changes.
    target: String,
    /// The tensor of the base that it starts from.
    source: String,
    /// The index of the layer.
    layer: usize,
    /// Where the matrix lies within the tensor.
    place: PlaceTuple,
    /// The first factor, and where in its tensor it lies.
    a: (Py<AdapterTensor>, PlaceTuple),
    /// The second factor, likewise.
    b: (Py<AdapterTensor>, PlaceTuple),
    /// What the product is multiplied by.
    scaling: f64,
    /// The lengths of rows of `DoRA`.
    magnitude: Option<Py<AdapterTensor>>,
}

/// Where every delta of an adapter goes.
#[pyclass(frozen, get_all, module = "infer_accel._native.lora")]
pub(crate) struct AdapterLedger {
    /// Low-rank updates.
    updates: Vec<Py<AdapterUpdate>>,
    /// Replaced tensors.
    exchanges: Vec<(String, Py<AdapterTensor>)>,
    /// Embedding and head that no longer share their weight.
    untied: Option<(String, String)>,
    /// What has no place in the base.
    problems: Faults,
}

/// An adapter.
#[pyclass(frozen, module = "infer_accel._native.lora")]
pub(crate) struct Adapter(pub(crate) core::Adapter);

/// Path, alpha, and the two factors, each by its format, shape and bytes.
type LayerParts = (String, f64, FactorParts, FactorParts);
type FactorParts = (String, Vec<usize>, PyBackedBytes);

#[pymethods]
impl Adapter {
    /// An adapter of linear and convolutional layers.
    #[staticmethod]
    fn from_parts(py: Python<'_>, layers: Vec<LayerParts>, use_rslora: bool) -> PyResult<Self> {
        let mut parts = Vec::with_capacity(layers.len());
        let mut bytes = 0;
        for (path, alpha, a, b) in layers {
            bytes += a.2.len() + b.2.len();
            parts.push(layer_from(path, alpha, &a, &b)?);
        }
        let config = core::Config { use_rslora, ..core::Config::default() };
        Ok(Self(run(py, bytes, || core::Adapter::from_parts(config, &parts, &[]))?))
    }

    /// The largest rank of a layer.
    #[getter]
    fn rank(&self) -> usize {
        self.0.rank()
    }

    /// Bytes of all tensors.
    #[getter]
    fn nbytes(&self) -> usize {
        self.0.nbytes()
    }

    /// What the adapter means, as 64 hexadecimal digits.
    fn digest(&self, py: Python<'_>) -> PyResult<String> {
        run(py, self.0.nbytes(), || Ok::<_, NativeError>(self.0.digest().to_string()))
    }

    /// Name and value of what the configuration says.
    fn config(&self) -> Vec<(&'static str, String)> {
        let config = self.0.config();
        vec![
            ("r", config.rank.to_string()),
            ("lora_alpha", config.alpha.to_string()),
            ("use_rslora", config.use_rslora.to_string()),
            ("use_dora", config.use_dora.to_string()),
            ("lora_bias", config.lora_bias.to_string()),
            ("fan_in_fan_out", config.fan_in_fan_out.to_string()),
            ("bias", config.bias.name().to_owned()),
            ("base_model_name_or_path", config.base_model.clone().unwrap_or_default()),
            ("task_type", config.task_type.clone().unwrap_or_default()),
        ]
    }

    /// The low-rank updates.
    fn layers(&self, py: Python<'_>) -> PyResult<Vec<AdapterLayer>> {
        self.0.layers().iter().map(|layer| layer_of(py, layer)).collect()
    }

    /// Name, part of a pipeline, and tensor of what is replaced as a whole.
    fn replacements(&self) -> Vec<(String, String, AdapterTensor)> {
        let of = |it: &core::Replacement| (it.name.clone(), it.scope.component.clone(), tensor(&it.tensor));
        self.0.replacements().iter().map(of).collect()
    }

    /// Finds the place of every delta in a base.
    #[pyo3(signature = (base, *, follow_symlinks))]
    fn resolve(&self, py: Python<'_>, base: PathBuf, follow_symlinks: bool) -> PyResult<AdapterLedger> {
        let ledger = run(py, FILE_WORK, || {
            let index = BaseIndex::open(&base, follow_symlinks)?;
            Ok::<_, Error>(self.0.resolve(&index))
        })?;
        let updates =
            ledger.updates.iter().map(|update| update_of(py, update)).collect::<PyResult<Vec<_>>>()?;
        let exchanges = ledger
            .exchanges
            .iter()
            .map(|exchange| Ok((exchange.target.clone(), Py::new(py, tensor(&exchange.tensor))?)))
            .collect::<PyResult<Vec<_>>>()?;
        let untied = ledger.untied.map(|untied| (untied.embedding, untied.head));
        Ok(AdapterLedger { updates, exchanges, untied, problems: faults(ledger.problems) })
    }

    /// Everything that is wrong between the adapter and a base.
    #[pyo3(signature = (base, *, follow_symlinks))]
    fn validate(&self, py: Python<'_>, base: PathBuf, follow_symlinks: bool) -> PyResult<Faults> {
        run(py, FILE_WORK, || {
            let index = BaseIndex::open(&base, follow_symlinks)?;
            Ok::<_, Error>(faults(self.0.resolve(&index).problems))
        })
    }

    /// Writes a PEFT directory.
    fn save(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        run(py, FILE_WORK, || self.0.save(&path))
    }
}

fn layer_from(
    path: String,
    alpha: f64,
    a: &FactorParts,
    b: &FactorParts,
) -> Result<core::Layer, NativeError> {
    let factor = |(dtype, shape, bytes): &FactorParts| {
        let dtype = [DType::F32, DType::F16, DType::BF16].into_iter().find(|known| known.name() == dtype);
        let Some(dtype) = dtype else {
            let message = "weights of an adapter are float32, float16 or bfloat16: convert them first";
            return Err(NativeError::new(ErrorKind::DType, "dtype.unsupported", message));
        };
        core::Tensor::from_bytes(bytes, dtype, shape).map_err(NativeError::from)
    };
    let (lora_a, lora_b) = (factor(a)?, factor(b)?);
    let rank = lora_a.shape().first().copied().unwrap_or(0);
    let kind = if lora_a.shape().len() > 2 { LayerKind::Convolution } else { LayerKind::Linear };
    Ok(core::Layer {
        path,
        scope: core::Scope::default(),
        kind,
        lora_a,
        lora_b,
        rank,
        alpha,
        scaling: 0.0, // made from the alpha by `from_parts`
        fan_in_fan_out: false,
        magnitude: None,
        bias_delta: None,
    })
}

fn layer_of(py: Python<'_>, layer: &core::Layer) -> PyResult<AdapterLayer> {
    let optional =
        |found: &Option<core::Tensor>| found.as_ref().map(|it| Py::new(py, tensor(it))).transpose();
    Ok(AdapterLayer {
        path: layer.path.clone(),
        component: layer.scope.component.clone(),
        kind: match layer.kind {
            LayerKind::Experts { .. } => "experts",
            kind => kind.name(),
        },
        rank: layer.rank,
        alpha: layer.alpha,
        scaling: layer.scaling,
        fan_in_fan_out: layer.fan_in_fan_out,
        lora_a: Py::new(py, tensor(&layer.lora_a))?,
        lora_b: Py::new(py, tensor(&layer.lora_b))?,
        magnitude: optional(&layer.magnitude)?,
        bias: optional(&layer.bias_delta)?,
    })
}

fn update_of(py: Python<'_>, update: &core::Update) -> PyResult<Py<AdapterUpdate>> {
    let of = |matrix: &Matrix| -> PyResult<(Py<AdapterTensor>, PlaceTuple)> {
        Ok((Py::new(py, tensor(matrix.tensor()))?, place_tuple(matrix.place())))
    };
    let update = AdapterUpdate {
        target: update.target.clone(),
        source: update.source.clone(),
        layer: update.layer,
        place: place_tuple(update.place),
        a: of(&update.a)?,
        b: of(&update.b)?,
        scaling: update.scaling,
        magnitude: update.magnitude.as_ref().map(|it| Py::new(py, tensor(it))).transpose()?,
    };
    Py::new(py, update)
}

/// Reads what lies at a path: the layers without a fault, every fault, and the text of the refusal.
#[pyfunction]
#[pyo3(signature = (path, *, follow_symlinks, max_tensors = None, num_threads = None))]
pub(crate) fn examine_adapter(
    py: Python<'_>,
    path: PathBuf,
    follow_symlinks: bool,
    max_tensors: Option<Count>,
    num_threads: Option<Count>,
) -> PyResult<(Option<Adapter>, Faults, String)> {
    let defaults = LoadOptions::default();
    let max_tensors = max_tensors.map_or(defaults.max_tensors, usize::from);
    let num_threads = num_threads.map(usize::from);
    let options = LoadOptions { follow_symlinks, num_threads, max_tensors };
    let found = run(py, FILE_WORK, || core::examine(&path, &options))?;
    let text = Error::Adapter { path, problems: found.problems.clone() }.to_string();
    Ok((found.adapter.map(Adapter), faults(found.problems), text))
}

/// File, name, format, shape and bytes of each tensor.
type Entries = Vec<(String, String, &'static str, Vec<usize>, u64)>;

/// The tensors of one safetensors file or of a checkpoint directory, by its headers.
#[pyfunction]
#[pyo3(signature = (path, *, follow_symlinks))]
pub(crate) fn read_headers(py: Python<'_>, path: PathBuf, follow_symlinks: bool) -> PyResult<Entries> {
    run(py, FILE_WORK, || {
        let options = OpenOptions { follow_symlinks, limits: Limits::CHECKPOINT };
        let mut entries = Entries::new();
        for shard in checkpoint_files(&path, follow_symlinks)? {
            let file = File::open(&shard, &options)?;
            let name = shard.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let rows = file.header().entries().iter().map(|entry| {
                let bytes = entry.byte_len();
                (name.clone(), entry.name.clone(), entry.dtype.name(), entry.shape.clone(), bytes)
            });
            entries.extend(rows);
        }
        Ok::<_, Error>(entries)
    })
}
