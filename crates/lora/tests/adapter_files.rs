//! Adapters in memory and in files: what goes out comes back, and what is broken is refused by its name.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use infer_accel_lora::Error;
use infer_accel_lora::adapter::{
    Adapter, BaseIndex, BaseTensor, Config, Layer, LayerKind, LoadOptions, Replacement, Scope, Tensor,
    examine,
};
use infer_accel_lora::problem::ProblemCode;
use infer_accel_lora::safetensors::{EntryPlan, File, Header, Limits, OpenOptions, StoredType, header_bytes};
use infer_accel_tensor::DType;
use proptest::prelude::*;

/// A directory that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("infer-accel-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, content).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn ramp(shape: &[usize], seed: u32) -> Tensor {
    let count: usize = shape.iter().product();
    let values: Vec<f32> =
        (0..count as u32).map(|i| ((i * 31 + seed * 17) % 23) as f32 / 8.0 - 1.25).collect();
    Tensor::from_f32(&values, shape).unwrap()
}

fn layer(path: &str, rank: usize, features: usize, out: usize) -> Layer {
    Layer {
        path: path.to_owned(),
        scope: Scope::default(),
        kind: LayerKind::Linear,
        lora_a: ramp(&[rank, features], 1),
        lora_b: ramp(&[out, rank], 2),
        rank,
        alpha: 16.0,
        scaling: 0.0,
        fan_in_fan_out: false,
        magnitude: None,
        bias_delta: None,
    }
}

/// A file of safetensors.
fn file(tensors: &[(&str, StoredType, &[usize], Vec<u8>)]) -> Vec<u8> {
    let plans: Vec<EntryPlan> = tensors
        .iter()
        .map(|(name, dtype, shape, _)| EntryPlan {
            name: (*name).to_owned(),
            dtype: *dtype,
            shape: shape.to_vec(),
        })
        .collect();
    let mut bytes = header_bytes(&plans, &BTreeMap::new()).unwrap();
    for (.., data) in tensors {
        bytes.extend_from_slice(data);
    }
    bytes
}

fn floats(count: usize) -> Vec<u8> {
    (0..count).flat_map(|i| (i as f32 / 64.0).to_le_bytes()).collect()
}

const A: &str = "base_model.model.m.q.lora_A.weight";
const B: &str = "base_model.model.m.q.lora_B.weight";
const CONFIG: &str = r#"{"peft_type":"LORA","r":2,"lora_alpha":4}"#;

fn codes(path: &Path) -> Vec<ProblemCode> {
    examine(path, &LoadOptions::default()).unwrap().problems.into_iter().map(|problem| problem.code).collect()
}

#[test]
fn what_is_saved_is_what_is_loaded() {
    let folder = Folder::new("round-trip");
    let mut layers = vec![layer("model.layers.0.q_proj", 4, 6, 5), layer("model.layers.1.q_proj", 2, 6, 5)];
    layers[1].alpha = 3.5;
    layers.push(Layer { kind: LayerKind::Embedding, ..layer("model.wte", 4, 11, 5) });
    layers.push(Layer {
        kind: LayerKind::Convolution,
        lora_a: ramp(&[4, 3, 2, 2], 3),
        lora_b: ramp(&[5, 4, 1, 1], 4),
        ..layer("model.conv", 4, 12, 5)
    });
    for (index, layer) in layers.iter_mut().enumerate() {
        layer.magnitude = Some(ramp(&[5], index as u32));
    }
    let config = Config {
        use_rslora: true,
        use_dora: true,
        modules_to_save: vec!["score".to_owned()],
        ..Config::default()
    };
    let replacements =
        [Replacement { name: "score.weight".to_owned(), scope: Scope::default(), tensor: ramp(&[3, 5], 9) }];
    let adapter = Adapter::from_parts(config, &layers, &replacements).unwrap();
    let path = folder.0.join("saved");
    adapter.save(&path).unwrap();
    let loaded = Adapter::load(&path, &LoadOptions::default()).unwrap();
    assert_eq!(loaded.digest(), adapter.digest());
    assert_eq!(loaded.config(), adapter.config());
    assert_eq!(loaded.nbytes(), adapter.nbytes());
    let scalings: Vec<f64> = loaded.layers().iter().map(|layer| layer.scaling).collect();
    assert_eq!(scalings, [8.0, 8.0, 3.5 / 2_f64.sqrt(), 8.0]);
    let Err(Error::Adapter { problems, .. }) = adapter.save(&path) else { panic!("nothing is overwritten") };
    assert_eq!(problems[0].code, ProblemCode::Path);
    assert_eq!(std::fs::read_dir(&folder.0).unwrap().count(), 1, "nothing is left beside it");
}

#[test]
fn a_digest_is_of_the_meaning() {
    let make = |alpha: f64, seed: u32| {
        let lora_a = ramp(&[2, 3], seed);
        let layers = [Layer { alpha, lora_a, ..layer("a", 2, 3, 4) }, layer("b", 2, 3, 4)];
        Adapter::from_parts(Config::default(), &layers, &[]).unwrap().digest()
    };
    assert_eq!(make(1.0, 1), make(1.0, 1));
    assert_ne!(make(1.0, 1), make(2.0, 1));
    assert_ne!(make(1.0, 1), make(1.0, 2));
    let swapped = [layer("b", 2, 3, 4), layer("a", 2, 3, 4)];
    let sorted = [layer("a", 2, 3, 4), layer("b", 2, 3, 4)];
    let digest = |layers: &[Layer]| Adapter::from_parts(Config::default(), layers, &[]).unwrap().digest();
    assert_eq!(digest(&swapped), digest(&sorted));
}

#[test]
fn broken_files_are_refused_by_name() {
    use ProblemCode as P;
    let (f32_, i8_) = (StoredType::F32, StoredType::I8);
    let good_b = (B, f32_, [4_usize, 2].as_slice(), floats(8));
    let a = |shape: &'static [usize]| (A, f32_, shape, floats(shape.iter().product()));
    let nan = |value: f32| {
        let mut bytes = floats(6);
        bytes[20..24].copy_from_slice(&value.to_le_bytes());
        (A, f32_, [2_usize, 3].as_slice(), bytes)
    };
    let good = file(&[a(&[2, 3]), good_b.clone()]);
    let mut gap = good.clone();
    gap.extend_from_slice(&[0; 4]);
    let cases: Vec<(&str, Vec<u8>, &str, Vec<P>)> = vec![
        ("good", good.clone(), CONFIG, vec![]),
        ("nan", file(&[nan(f32::NAN), good_b.clone()]), CONFIG, vec![P::NotFinite]),
        ("infinity", file(&[nan(f32::NEG_INFINITY), good_b.clone()]), CONFIG, vec![P::NotFinite]),
        ("nan alpha", good.clone(), r#"{"r":2,"lora_alpha":NaN}"#, vec![P::Alpha]),
        ("huge alpha", good.clone(), r#"{"r":2,"lora_alpha":1e300}"#, vec![P::Alpha]),
        ("text alpha", good.clone(), r#"{"r":2,"lora_alpha":"4"}"#, vec![P::Config]),
        ("rank 0", good.clone(), r#"{"r":0}"#, vec![P::Rank, P::Rank]),
        ("rank below 0", good.clone(), r#"{"r":-2}"#, vec![P::Rank, P::Rank]),
        ("rank huge", good.clone(), r#"{"r":1000000000}"#, vec![P::Rank, P::Rank]),
        ("other rank", good.clone(), r#"{"r":3}"#, vec![P::Rank]),
        ("pair disagrees", file(&[a(&[3, 3]), good_b.clone()]), CONFIG, vec![P::Rank]),
        ("only a", file(&[a(&[2, 3])]), CONFIG, vec![P::Pair]),
        ("one dimension", file(&[a(&[6]), good_b.clone()]), CONFIG, vec![P::Shape]),
        ("nothing in it", file(&[a(&[2, 0]), good_b.clone()]), CONFIG, vec![P::Shape]),
        (
            "int8",
            file(&[(A, i8_, &[2, 3], vec![1; 6]), (B, i8_, &[4, 2], vec![1; 8])]),
            CONFIG,
            vec![P::DType; 2],
        ),
        ("dora", good.clone(), r#"{"r":2,"use_dora":true}"#, vec![P::Pair]),
        ("pissa", good.clone(), r#"{"r":2,"init_lora_weights":"pissa_niter_4"}"#, vec![P::Unsupported]),
        ("unknown use", good.clone(), r#"{"r":2,"use_magic":true}"#, vec![P::Unsupported]),
        ("other method", good.clone(), r#"{"r":2,"peft_type":"LOHA"}"#, vec![P::Unsupported]),
        ("config twice", good.clone(), r#"{"r":2,"r":2}"#, vec![P::Config, P::Rank]),
        ("bad pattern", good.clone(), r#"{"r":2,"rank_pattern":{"(":4}}"#, vec![P::Config]),
        ("truncated", good[..good.len() - 4].to_vec(), CONFIG, vec![P::Truncated]),
        ("empty", vec![], CONFIG, vec![P::Truncated]),
        ("huge header", [vec![0xFF; 8], good[8..].to_vec()].concat(), CONFIG, vec![P::Size]),
        ("longer than it says", gap, CONFIG, vec![P::Offsets]),
        ("no tensor", file(&[]), CONFIG, vec![P::Empty]),
        ("unknown name", file(&[("x.y", f32_, &[1], floats(1))]), CONFIG, vec![P::UnknownTensor]),
        (
            "another adapter",
            file(&[
                a(&[2, 3]),
                good_b.clone(),
                ("n.lora_A.other.weight", f32_, &[2, 1], floats(2)),
                ("n.lora_B.more.weight", f32_, &[1, 2], floats(2)),
            ]),
            CONFIG,
            vec![P::Ambiguous],
        ),
        (
            "same part twice",
            file(&[a(&[2, 3]), good_b, ("base_model.model.m.q.lora_A.x.weight", f32_, &[2, 3], floats(6))]),
            CONFIG,
            vec![P::Duplicate],
        ),
    ];
    for (name, weights, config, expected) in cases {
        let folder = Folder::new("broken");
        folder.write("adapter_model.safetensors", weights);
        folder.write("adapter_config.json", config);
        assert_eq!(
            codes(&folder.0),
            expected,
            "{name}: {:?}",
            examine(&folder.0, &LoadOptions::default()).unwrap().problems
        );
        assert_eq!(Adapter::load(&folder.0, &LoadOptions::default()).is_ok(), expected.is_empty(), "{name}");
    }
}

#[test]
fn directories_that_are_none_are_refused() {
    let folder = Folder::new("odd");
    assert_eq!(codes(&folder.0), [ProblemCode::Read]);
    folder.write("adapter_model.bin", "x");
    assert_eq!(codes(&folder.0), [ProblemCode::Pickle]);
    assert_eq!(codes(&folder.0.join("adapter_model.bin")), [ProblemCode::Pickle]);
    let tensors =
        [(A, StoredType::F32, [2_usize, 3].as_slice(), floats(6)), (B, StoredType::F32, &[4, 2], floats(8))];
    let weights = folder.write("adapter_model.safetensors", file(&tensors));
    assert_eq!(codes(&folder.0), [ProblemCode::Read], "no configuration");
    assert_eq!(codes(&weights), [ProblemCode::Config], "PEFT's names without PEFT's configuration");
}

#[cfg(unix)]
#[test]
fn links_and_pipes_are_refused() {
    let folder = Folder::new("links");
    let other = Folder::new("links-target");
    let tensors =
        [(A, StoredType::F32, [2_usize, 3].as_slice(), floats(6)), (B, StoredType::F32, &[4, 2], floats(8))];
    let target = other.write("weights", file(&tensors));
    folder.write("adapter_config.json", CONFIG);
    let link = folder.0.join("adapter_model.safetensors");
    std::os::unix::fs::symlink(&target, &link).unwrap();
    assert_eq!(codes(&folder.0), [ProblemCode::Path]);
    let follow = LoadOptions { follow_symlinks: true, ..LoadOptions::default() };
    assert!(Adapter::load(&folder.0, &follow).is_ok());
    std::fs::remove_file(&link).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&link).status().unwrap().success());
    assert_eq!(codes(&folder.0), [ProblemCode::Path], "without waiting for somebody to write");
}

#[test]
fn a_file_that_is_cut_off_after_it_was_opened_is_an_error() {
    let folder = Folder::new("cut");
    let path = folder.write("x.safetensors", file(&[("a", StoredType::F32, &[64], floats(64))]));
    let open = File::open(&path, &OpenOptions::default()).unwrap();
    let entry = open.header().get("a").unwrap().clone();
    let mut target = vec![0; 256];
    open.read_at(&entry, 0, &mut target).unwrap();
    assert_eq!(target, floats(64));
    assert!(open.read_at(&entry, 1, &mut target).is_err(), "a byte beyond the tensor");
    assert!(open.read_at(&entry, u64::MAX, &mut target).is_err());
    let length = std::fs::metadata(&path).unwrap().len();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(length - 4).unwrap();
    let Err(Error::File { problem, .. }) = open.read_at(&entry, 0, &mut target) else { panic!("an error") };
    assert_eq!((problem.code, problem.tensor.as_str()), (ProblemCode::Truncated, "a"));
}

#[test]
fn a_file_that_is_swapped_after_it_was_opened_does_not_matter() {
    let folder = Folder::new("swap");
    let path = folder.write("x.safetensors", file(&[("a", StoredType::F32, &[64], floats(64))]));
    let open = File::open(&path, &OpenOptions::default()).unwrap();
    std::fs::remove_file(&path).unwrap();
    folder.write("x.safetensors", "something else");
    let mut target = vec![0; 256];
    open.read_at(open.header().get("a").unwrap(), 0, &mut target).unwrap();
    assert_eq!(target, floats(64));
}

#[test]
fn headers_keep_to_the_format() {
    use ProblemCode as P;
    let entry = |name: &str, start: u64, end: u64| {
        format!(
            r#""{name}":{{"dtype":"U8","shape":[{}],"data_offsets":[{start},{end}]}}"#,
            end.wrapping_sub(start)
        )
    };
    let cases: Vec<(String, u64, Result<usize, P>)> = vec![
        (format!("{{{},{}}}", entry("b", 2, 5), entry("a", 0, 2)), 5, Ok(2)),
        (r#"{"__metadata__":{"format":"pt"}}"#.to_owned(), 0, Ok(0)),
        (format!("{{{}}}   ", entry("a", 0, 0)), 0, Ok(1)),
        (format!("{{{},{}}}", entry("a", 0, 3), entry("b", 2, 5)), 5, Err(P::Offsets)),
        (format!("{{{},{}}}", entry("a", 0, 2), entry("b", 3, 5)), 5, Err(P::Offsets)),
        (format!("{{{}}}", entry("a", 1, 2)), 2, Err(P::Offsets)),
        (format!("{{{},{}}}", entry("a", 0, 2), entry("a", 2, 5)), 5, Err(P::Duplicate)),
        (format!("{{{}}}", entry("a", 0, 4)), 3, Err(P::Truncated)),
        (format!("{{{}}}", entry("a", 0, 4)), 5, Err(P::Offsets)),
        (
            r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}"#.to_owned(),
            0,
            Err(P::Size),
        ),
        (r#"{"a":{"dtype":"F4","shape":[3],"data_offsets":[0,1]}}"#.to_owned(), 1, Err(P::Size)),
        (r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#.to_owned(), 4, Err(P::Offsets)),
        (r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[4,2]}}"#.to_owned(), 4, Err(P::Offsets)),
        (r#"{"a":{"dtype":"F33","shape":[0],"data_offsets":[0,0]}}"#.to_owned(), 0, Err(P::DType)),
        (r#"{"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,0]}}"#.to_owned(), 0, Err(P::Header)),
        (r#"{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0],"more":1}}"#.to_owned(), 0, Err(P::Header)),
        (
            r#"{"a":{"dtype":"U8","dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#.to_owned(),
            0,
            Err(P::Header),
        ),
        (r#"{"__metadata__":{"a":"1","a":"2"}}"#.to_owned(), 0, Err(P::Header)),
        (r#"{"__metadata__":{"a":1}}"#.to_owned(), 0, Err(P::Header)),
        (" {}".to_owned(), 0, Err(P::Header)),
        ("{} x".to_owned(), 0, Err(P::Header)),
        (String::new(), 0, Err(P::Header)),
    ];
    for (json, data, expected) in cases {
        let length = 8 + json.len() as u64 + data;
        let found = Header::parse(json.as_bytes(), length, &Limits::CHECKPOINT);
        assert_eq!(
            found.map(|header| header.entries().len()).map_err(|problem| problem.code),
            expected,
            "{json}"
        );
    }
}

#[test]
fn a_header_of_too_many_entries_is_refused() {
    let entries: Vec<String> = (0..100_000)
        .map(|i| format!(r#""t{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#))
        .collect();
    let json = format!("{{{}}}", entries.join(","));
    let length = 8 + json.len() as u64;
    assert_eq!(Header::parse(json.as_bytes(), length, &Limits::ADAPTER).unwrap_err().code, ProblemCode::Size);
    assert!(Header::parse(json.as_bytes(), length, &Limits::CHECKPOINT).is_ok());
    let small = Limits { header_bytes: 100, ..Limits::CHECKPOINT };
    assert_eq!(Header::parse(json.as_bytes(), length, &small).unwrap_err().code, ProblemCode::Size);
}

fn base(tensors: &[(&str, &[usize])]) -> BaseIndex {
    BaseIndex::from_tensors(tensors.iter().map(|(name, shape)| {
        ((*name).to_owned(), BaseTensor { dtype: StoredType::BF16, shape: shape.to_vec() })
    }))
}

#[test]
fn what_has_no_place_in_the_base_is_named() {
    let layers = [layer("l.q", 2, 3, 4), layer("l.k", 2, 3, 4), layer("l.zzz", 2, 3, 4)];
    let adapter = Adapter::from_parts(Config::default(), &layers, &[]).unwrap();
    let ledger = adapter.resolve(&base(&[("l.q.weight", &[4, 3]), ("l.k.weight", &[4, 5])]));
    let found: Vec<(&str, ProblemCode)> =
        ledger.problems.iter().map(|problem| (problem.tensor.as_str(), problem.code)).collect();
    assert_eq!(found, [("l.k", ProblemCode::Shape), ("l.zzz", ProblemCode::UnknownModule)]);
    assert_eq!(ledger.updates.len(), 1);
    assert_eq!(ledger.updates[0].target, "l.q.weight");
}

#[test]
fn a_head_that_shares_the_embeddings_weight_gets_its_own() {
    let tied =
        base(&[("model.embed_tokens.weight", &[11, 3]), ("model.l.weight", &[3, 3])]).with_model(None, true);
    let head = Adapter::from_parts(Config::default(), &[layer("lm_head", 2, 3, 11)], &[]).unwrap();
    let ledger = head.resolve(&tied);
    assert_eq!(ledger.problems, []);
    let untied = ledger.untied.unwrap();
    assert_eq!(
        (untied.embedding.as_str(), untied.head.as_str()),
        ("model.embed_tokens.weight", "lm_head.weight")
    );
    assert_eq!(
        (ledger.updates[0].target.as_str(), ledger.updates[0].source.as_str()),
        ("lm_head.weight", "model.embed_tokens.weight")
    );
    let other = Adapter::from_parts(Config::default(), &[layer("model.l", 2, 3, 3)], &[]).unwrap();
    assert_eq!(other.resolve(&tied).untied, None);
    let save = |names: &[&str]| {
        let replacements: Vec<Replacement> = names
            .iter()
            .map(|name| Replacement {
                name: (*name).to_owned(),
                scope: Scope::default(),
                tensor: ramp(&[11, 3], 0),
            })
            .collect();
        let ledger = Adapter::from_parts(Config::default(), &[], &replacements).unwrap().resolve(&tied);
        assert_eq!(ledger.problems, []);
        (ledger.untied.is_some(), ledger.exchanges.len())
    };
    assert_eq!(save(&["model.embed_tokens.weight"]), (true, 1));
    assert_eq!(
        save(&["model.embed_tokens.weight", "lm_head.weight"]),
        (false, 1),
        "both by the same weights"
    );
}

#[test]
fn deltas_beyond_the_bases_format_are_named() {
    let tensor =
        |value: f32, shape: &[usize]| Tensor::from_f32(&vec![value; shape.iter().product()], shape).unwrap();
    let make = |value: f32| {
        let one = Layer {
            lora_a: tensor(value, &[2, 3]),
            lora_b: tensor(value, &[4, 2]),
            alpha: 2.0,
            ..layer("q", 2, 3, 4)
        };
        Adapter::from_parts(Config::default(), &[one], &[]).unwrap()
    };
    let index =
        |dtype| BaseIndex::from_tensors([("q.weight".to_owned(), BaseTensor { dtype, shape: vec![4, 3] })]);
    let codes = |value, dtype| -> Vec<ProblemCode> {
        make(value).resolve(&index(dtype)).problems.iter().map(|problem| problem.code).collect()
    };
    assert_eq!(codes(180.0, StoredType::F16), [], "2 · 180² is below 65504");
    assert_eq!(codes(182.0, StoredType::F16), [ProblemCode::Overflow]);
    assert_eq!(codes(182.0, StoredType::BF16), []);
    assert_eq!(codes(1e20, StoredType::BF16), [ProblemCode::Overflow]);
    assert_eq!(codes(1e20, StoredType::F32), [ProblemCode::Overflow]);
}

/// What an update does, by the definition, on a base of zeros.
fn applied(adapter: &Adapter, index: &BaseIndex, target: &str) -> Vec<f32> {
    let ledger = adapter.resolve(index);
    assert_eq!(ledger.problems, []);
    let shape = index.get(target).unwrap().shape.clone();
    let mut memory = vec![0_u8; shape.iter().product::<usize>() * 4];
    for update in ledger.updates.iter().filter(|update| update.target == target) {
        let place = update.place;
        let mut matrix = infer_accel_tensor::TensorMut::from_bytes(
            &mut memory,
            DType::F32,
            place.offset,
            &place.shape,
            &place.strides,
        )
        .unwrap();
        let options = infer_accel_lora::Options { scaling: update.scaling, num_threads: Some(1), tier: None };
        infer_accel_lora::merge_weights(
            &mut matrix,
            &update.a.view().unwrap(),
            &update.b.view().unwrap(),
            &options,
        )
        .unwrap();
    }
    memory.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

fn number(tensor: &Tensor, index: usize) -> f32 {
    f32::from_le_bytes(tensor.bytes()[index * 4..index * 4 + 4].try_into().unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_kind_lands_where_its_definition_says(
        rank in 1..4_usize, features in 1..6_usize, out in 1..6_usize, experts in 1..4_usize, kind in 0..5_usize,
    ) {
        // A square weight could be stored either way; that choice has a test of its own.
        prop_assume!(features != out || kind == 0 || kind == 2);
        let at = |tensor: &Tensor, row: usize, column: usize| number(tensor, row * tensor.shape()[1..].iter().product::<usize>() + column);
        let mut one = layer("m", rank, features, out);
        one.alpha = rank as f64;
        let mut config = Config::default();
        let (name, shape): (&str, Vec<usize>) = match kind {
            0 => ("m.weight", vec![out, features]),
            1 => { config.fan_in_fan_out = true; ("m.weight", vec![features, out]) }
            2 => { one.kind = LayerKind::Embedding; ("m.weight", vec![features, out]) }
            _ => {
                one.kind = LayerKind::Experts { depth: 0 };
                one.lora_a = ramp(&[rank * experts, features], 5);
                one.lora_b = ramp(&[out, rank * experts], 6);
                config.target_parameters = vec!["m.w".to_owned()];
                ("m.w", if kind == 3 { vec![experts, out, features] } else { vec![experts, features, out] })
            }
        };
        let adapter = Adapter::from_parts(config, &[one.clone()], &[]).unwrap();
        let index = base(&[(name, &shape)]);
        let result = applied(&adapter, &index, name);
        let count = if kind >= 3 { experts } else { 1 };
        for e in 0..count {
            for i in 0..out {
                for j in 0..features {
                    let expected: f32 = (0..rank)
                        .map(|k| {
                            // einsum "o (r e), (e r) i": the expert is the fast axis of B's columns, the slow one of A's rows
                            let b = at(&one.lora_b, i, if kind >= 3 { k * count + e } else { k });
                            b * at(&one.lora_a, e * rank + k, j)
                        })
                        .sum();
                    let place = match kind {
                        1 | 2 => j * out + i,
                        4 => (e * features + j) * out + i,
                        _ => (e * out + i) * features + j,
                    };
                    prop_assert_eq!(result[place], expected, "{} {} {}", e, i, j);
                }
            }
        }
    }

    #[test]
    fn any_bytes_are_a_header_or_an_error(json in "[{}\\[\\]\",:a-c0-9 ]{0,80}", length in 0..200_u64) {
        let _ = Header::parse(json.as_bytes(), length, &Limits::ADAPTER);
    }
}
