//! Any bytes are a trace or an error, and any trace can be replayed.
#![no_main]

use infer_accel_kvcache::replay::{ReplayOptions, Trace, replay};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(trace) = Trace::parse(data) else { return };
    if trace.requests().iter().map(|request| request.input_tokens).sum::<usize>() > 1 << 20 {
        return; // long, and no different
    }
    let options = ReplayOptions {
        num_blocks: 50,
        block_size: 64,
        host_blocks: 20,
        outputs: false,
        seconds_per_token: data.first().map(|&byte| f64::from(byte) + 0.5),
    };
    let outcome = replay(&trace, &options, &|| false, &mut |_| {});
    assert_eq!(outcome.map(|outcome| outcome.hits.len()), Ok(trace.requests().len()));
});
