//! Any bytes as a header: tensors without gaps inside the file, or an error. Never a panic.
#![no_main]

use infer_accel_lora::safetensors::{Header, Limits};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u64, &[u8])| {
    let (data, json) = input;
    let file_len = (8 + json.len() as u64).saturating_add(data);
    let Ok(header) = Header::parse(json, file_len, &Limits::ADAPTER) else { return };
    let mut end = header.data_start();
    for entry in header.entries() {
        assert_eq!(entry.range.start, end);
        assert_eq!(header.get(&entry.name), Some(entry));
        let shape: Vec<u64> = entry.shape.iter().map(|&extent| extent as u64).collect();
        assert_eq!(entry.dtype.byte_len(&shape), Some(entry.byte_len()));
        end = entry.range.end;
    }
    assert_eq!(end, file_len);
});
