//! Any names, shapes and configuration: an adapter that can be matched with a base, saved and read again, or an error.
#![no_main]

use std::collections::BTreeMap;
use std::fs;

use infer_accel_lora::adapter::{Adapter, BaseIndex, BaseTensor, LoadOptions};
use infer_accel_lora::safetensors::{EntryPlan, StoredType, header_bytes};
use libfuzzer_sys::fuzz_target;

const NAMES: [&str; 12] = [
    "base_model.model.a.q.lora_A.weight",
    "base_model.model.a.q.lora_B.weight",
    "base_model.model.a.q.lora_B.bias",
    "base_model.model.a.q.lora_magnitude_vector",
    "base_model.model.a.e.lora_embedding_A",
    "base_model.model.a.e.lora_embedding_B",
    "base_model.model.a.x.lora_A.weight",
    "base_model.model.a.x.lora_B.weight",
    "base_model.model.a.x.base_layer.lora_A.weight",
    "base_model.model.a.x.base_layer.lora_B.weight",
    "base_model.model.lm_head.weight",
    "base_model.model.a.q.bias",
];

fuzz_target!(|input: (Vec<(u8, Vec<u8>)>, &str)| {
    let (tensors, config) = input;
    let mut plans = Vec::new();
    for (name, shape) in tensors.iter().take(NAMES.len()) {
        plans.push(EntryPlan {
            name: NAMES[usize::from(*name) % NAMES.len()].to_owned(),
            dtype: StoredType::F32,
            shape: shape.iter().take(4).map(|&extent| usize::from(extent % 8)).collect(),
        });
    }
    let Some(mut file) = header_bytes(&plans, &BTreeMap::new()) else { return };
    let length: u64 = plans.iter().filter_map(EntryPlan::byte_len).sum();
    file.resize(file.len() + length as usize, 0);
    let folder = std::env::temp_dir().join(format!("infer-accel-fuzz-{}", std::process::id()));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir(&folder).expect("a folder of its own");
    fs::write(folder.join("adapter_model.safetensors"), &file).expect("a file of its own");
    fs::write(folder.join("adapter_config.json"), config).expect("a file of its own");
    let Ok(adapter) = Adapter::load(&folder, &LoadOptions::default()) else { return };
    let base = BaseIndex::from_tensors(["a.q.weight", "a.e.weight", "a.x", "a.q.bias", "lm_head.weight"].map(
        |name| (name.to_owned(), BaseTensor { dtype: StoredType::BF16, shape: vec![3, 4, 5] }),
    ));
    let _ = adapter.resolve(&base);
    let saved = folder.join("saved");
    adapter.save(&saved).expect("what was read can be written");
    let again = Adapter::load(&saved, &LoadOptions::default()).expect("what was written can be read");
    assert_eq!(again.digest(), adapter.digest());
});
