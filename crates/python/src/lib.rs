//! The extension module `infer_accel._native`: extract, detach, call the core, map the error. No arithmetic and
//! no policy lives here.

// Arguments arrive from Python by value.
#![allow(clippy::needless_pass_by_value)]

mod errors;
mod kvcache;
mod lora;
mod machine;
mod numbers;
mod run;
mod system;
mod tensor;
mod text;
mod tokenize;

/// The native core of infer-accel. Use the typed modules of ``infer_accel`` instead.
#[pyo3::pymodule]
mod _native {
    use pyo3::exceptions::PyImportError;
    use pyo3::prelude::*;

    #[pymodule_export]
    use crate::kvcache::kvcache;

    #[pymodule_export]
    use crate::lora::lora;

    #[pymodule_export]
    use crate::machine::machine;

    #[pymodule_export]
    use crate::system::system;

    #[pymodule_export]
    use crate::tokenize::tokenize;

    /// The version of this build.
    #[pymodule_export]
    const VERSION: &str = env!("CARGO_PKG_VERSION");

    /// Where the package puts this module.
    const NAME: &str = "infer_accel._native";

    #[pymodule_init]
    fn finish(py: Python<'_>) -> PyResult<()> {
        if let Some(problem) = infer_accel_tensor::simd::check_variable() {
            return Err(PyImportError::new_err(problem));
        }
        // What `import infer_accel._native.lora`, pickle and the checker of the stubs look up by dotted name.
        // (An argument for the module itself would mark it as incomplete in its stub.)
        let loaded = py.import("sys")?.getattr("modules")?;
        let module = loaded.get_item(NAME)?.cast_into::<PyModule>()?;
        for (name, value) in module.dict() {
            if value.is_instance_of::<PyModule>() {
                loaded.set_item(format!("{NAME}.{name}"), value)?;
            }
        }
        Ok(())
    }
}
