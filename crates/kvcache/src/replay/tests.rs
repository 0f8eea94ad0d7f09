use super::*;
use crate::error::KvCacheError;

const NEVER: &dyn Fn() -> bool = &|| false;

fn options(num_blocks: usize, block_size: usize) -> ReplayOptions {
    ReplayOptions { num_blocks, block_size, host_blocks: 0, outputs: false, seconds_per_token: None }
}

fn run(trace: &Trace, options: &ReplayOptions) -> ReplayOutcome {
    replay(trace, options, NEVER, &mut |_| {}).unwrap()
}

fn mooncake(rows: &[(u64, usize, usize, &[u64])]) -> Trace {
    let lines: Vec<String> = rows
        .iter()
        .map(|(at, input, output, ids)| {
            format!(
                r#"{{"timestamp":{at},"input_length":{input},"output_length":{output},"hash_ids":{ids:?}}}"#
            )
        })
        .collect();
    Trace::parse(lines.join("\n").as_bytes()).unwrap()
}

#[test]
fn both_formats_are_read() {
    let trace = mooncake(&[(5, 700, 3, &[1, 2]), (0, 10, 0, &[9])]);
    assert!(trace.has_ids());
    assert_eq!(trace.requests()[0].arrival, 0, "in the order of arrival");
    assert_eq!(trace.ids_of(&trace.requests()[1]), [1, 2]);
    let csv = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 23:59:59.9000000,374,44\n\n\
               2023-11-17 00:00:01.1000000,396,109\n";
    let trace = Trace::parse(csv.as_bytes()).unwrap();
    assert!(!trace.has_ids());
    assert_eq!(trace.requests()[1].arrival, 1200);
    assert_eq!((trace.requests()[1].input_tokens, trace.requests()[1].output_tokens), (396, 109));
}

#[test]
fn what_is_no_trace_is_named_with_its_line() {
    let good = r#"{"timestamp":0,"input_length":512,"output_length":1,"hash_ids":[1]}"#;
    let cases: [(Vec<u8>, usize); 10] = [
        (b"".to_vec(), 1),
        (b"a,b,c\n1,2,3".to_vec(), 1),
        (format!("{good}\n{{").into_bytes(), 2),
        (format!("{good}\n\n{}", good.replace("[1]", "[1,2]")).into_bytes(), 3),
        (good.replace("512", "-1").into_bytes(), 1),
        (good.replace("\"timestamp\":0", "\"timestamp\":-1").into_bytes(), 1),
        (good.replace("512", "99999999999").into_bytes(), 1),
        (b"TIMESTAMP,ContextTokens,GeneratedTokens\n2023-13-01 00:00:00,1,1".to_vec(), 2),
        (b"TIMESTAMP,ContextTokens,GeneratedTokens\n2023-12-01 00:00:00,1".to_vec(), 2),
        ([good.as_bytes(), b"\n\xff"].concat(), 2),
    ];
    for (data, line) in cases {
        match Trace::parse(&data) {
            Err(KvCacheError::Trace { line: found, .. }) => assert_eq!(found, line),
            other => panic!("{other:?} for {:?}", String::from_utf8_lossy(&data)),
        }
    }
}

#[test]
fn hits_follow_from_ids_and_capacity() {
    // 1100 tokens are 68 full blocks of 16; the last token is computed again in any case.
    let ids: &[u64] = &[1, 2, 3];
    let trace =
        mooncake(&[(0, 1100, 9, ids), (1, 1100, 9, ids), (2, 1024, 9, &[1, 2]), (3, 1100, 9, &[1, 7, 8])]);
    let outcome = run(&trace, &options(1000, 16));
    assert_eq!(outcome.blocks, [69, 69, 64, 69]);
    assert_eq!(outcome.hits, [0, 68, 63, 32]);
    assert_eq!((outcome.evictions, outcome.host_stores), (0, 0));
    // Room for one prompt: each evicts what the one before left, last blocks first.
    let outcome = run(&trace, &options(70, 16));
    assert_eq!(outcome.hits[..2], [0, 68]);
    assert!(outcome.evictions > 30);
    // A prompt that never fits is passed over.
    let outcome = run(&trace, &options(66, 16));
    assert_eq!(outcome.waits, [-1, -1, 0, -1]);
    assert_eq!(outcome.hits, [0, 0, 0, 0]);
    for block_size in [1, 128, 512, 1024] {
        let outcome = run(&trace, &options(2000, block_size));
        assert_eq!(outcome.hits[1] as usize, 1099 / block_size);
    }
    for block_size in [0, 3, 768] {
        let error = replay(&trace, &options(10, block_size), NEVER, &mut |_| {}).unwrap_err();
        assert_eq!(error.code(), "argument.replay_block_size");
    }
}

#[test]
fn a_second_tier_gives_back_what_the_cache_lost() {
    let trace = mooncake(&[(0, 1024, 0, &[1, 2]), (1, 1024, 0, &[3, 4]), (2, 1024, 0, &[1, 2])]);
    let alone = run(&trace, &options(80, 16));
    let helped = run(&trace, &ReplayOptions { host_blocks: 500, ..options(80, 16) });
    assert_eq!(alone.hits[2], helped.hits[2], "the cache itself works alike");
    assert_eq!(helped.hits[2] + helped.host_hits[2], 63);
    assert!(helped.host_hits[2] > 0);
    assert_eq!(helped.host_stores, helped.evictions);
}

#[test]
fn requests_that_overlap_wait_for_blocks() {
    let trace = mooncake(&[(0, 512, 100, &[1]), (10, 512, 100, &[2]), (20, 512, 100, &[1])]);
    let timed = ReplayOptions { seconds_per_token: Some(0.01), ..options(40, 16) };
    let outcome = run(&trace, &timed);
    // None fits beside another, each runs for a second, and nobody overtakes.
    assert_eq!(outcome.waits, [0, 990, 1980]);
    let roomy = run(&trace, &ReplayOptions { num_blocks: 200, ..timed });
    assert_eq!(roomy.waits, [0, 0, 0]);
    assert_eq!(roomy.hits, [0, 0, 31]);
}

#[test]
fn made_traces_are_the_same_for_a_seed() {
    let options = SyntheticOptions { requests: 300, system_prompts: 5, continued: 0.6, rate: 4.0, seed: 7 };
    let trace = Trace::synthetic(&options).unwrap();
    assert_eq!(trace, Trace::synthetic(&options).unwrap());
    assert_ne!(trace, Trace::synthetic(&SyntheticOptions { seed: 8, ..options }).unwrap());
    for request in trace.requests() {
        assert_eq!(trace.ids_of(request).len(), request.input_tokens.div_ceil(IDS_TOKENS));
    }
    let outcome = run(&trace, &self::options(100_000, 16));
    let (hits, blocks) = (outcome.hits.iter().sum::<u32>(), outcome.blocks.iter().sum::<u32>());
    assert!(hits * 4 > blocks, "{hits} of {blocks}");
    for wrong in [
        SyntheticOptions { requests: 0, ..options },
        SyntheticOptions { system_prompts: 0, ..options },
        SyntheticOptions { continued: 1.5, ..options },
        SyntheticOptions { rate: 0.0, ..options },
    ] {
        assert_eq!(Trace::synthetic(&wrong).unwrap_err().code(), "argument.synthetic_trace");
    }
}

#[test]
fn a_replay_can_be_stopped() {
    let trace = mooncake(&[(0, 512, 0, &[1])]);
    assert_eq!(replay(&trace, &options(40, 16), &|| true, &mut |_| {}).unwrap_err().code(), "interrupted");
}
