//! `adapter_config.json`: what is read of it, and what is refused. Nothing that it names is imported or opened.

use super::json::Node;
use super::pattern::Pattern;
use crate::problem::{Problem, ProblemCode};

/// The largest rank that is served.
pub const MAX_RANK: usize = 1 << 14;

/// Which biases of the base an adapter brings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BiasMode {
    /// None.
    #[default]
    None,
    /// All of them.
    All,
    /// Those of its own modules.
    LoraOnly,
}

impl BiasMode {
    /// The name in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::All => "all",
            Self::LoraOnly => "lora_only",
        }
    }
}

/// What the configuration of an adapter says, with PEFT's defaults for what it leaves out.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "the fields of a file, whose flags are independent")]
pub struct Config {
    /// `r`: the rank of every module that no pattern names.
    pub rank: usize,
    /// `lora_alpha`: the alpha of every module that no pattern names.
    pub alpha: f64,
    /// Whether the scaling is `alpha / √rank` instead of `alpha / rank`.
    pub use_rslora: bool,
    /// Whether modules have magnitudes.
    pub use_dora: bool,
    /// Whether `lora_B` has biases.
    pub lora_bias: bool,
    /// Whether weights are said to be stored `[in, out]`.
    pub fan_in_fan_out: bool,
    /// Which biases of the base are replaced.
    pub bias: BiasMode,
    /// Ranks of modules by pattern, in their order.
    pub rank_pattern: Vec<(String, usize)>,
    /// Alphas of modules by pattern, in their order.
    pub alpha_pattern: Vec<(String, f64)>,
    /// Modules that are replaced as a whole.
    pub modules_to_save: Vec<String>,
    /// Parameters, not modules, that have updates.
    pub target_parameters: Vec<String>,
    /// `base_model_name_or_path`: a note, never opened.
    pub base_model: Option<String>,
    /// `task_type`: a note.
    pub task_type: Option<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            rank: 8,
            alpha: 8.0,
            use_rslora: false,
            use_dora: false,
            lora_bias: false,
            fan_in_fan_out: false,
            bias: BiasMode::None,
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            modules_to_save: Vec::new(),
            target_parameters: Vec::new(),
            base_model: None,
            task_type: None,
        }
    }
}

/// Fields that change what an adapter means in a way that is not served, when they are set.
const REFUSED: [(&str, &str); 9] = [
    ("layer_replication", "layers of the base that are used several times"),
    (
        "alora_invocation_tokens",
        "an adapter that works from certain tokens on only, which no merged weight can do",
    ),
    ("arrow_config", "routing between adapters"),
    ("use_qalora", "QA-LoRA"),
    ("use_bdlora", "block-diagonal LoRA"),
    ("kasa_config", "KaSA, which changes the base's weights"),
    ("monteclora_config", "weights that are drawn at random"),
    ("trainable_token_indices", "single trained rows of an embedding"),
    ("loftq_config", "LoftQ, which changes the base's weights"),
];

/// Ways to begin a training that change the base's weights, so that the adapter alone means nothing.
const CHANGES_BASE: [&str; 5] = ["pissa", "olora", "corda", "loftq", "lora_ga"];

impl Config {
    /// Reads a configuration; every fault is added to `problems`, and the default stands in its place.
    pub(super) fn parse(text: &[u8], problems: &mut Vec<Problem>) -> Self {
        let mut config = Self::default();
        let fields = match Node::parse(text) {
            Ok(Node::Object(fields)) => fields,
            Ok(other) => {
                let message = format!("adapter_config.json holds {}; an object is needed", other.shown());
                problems.push(Problem::new(ProblemCode::Config, "adapter_config.json", message));
                return config;
            }
            Err(error) => {
                let message = format!("it is no JSON that can be read: {error}");
                problems.push(Problem::new(ProblemCode::Config, "adapter_config.json", message));
                return config;
            }
        };
        for (name, node) in &fields {
            if let Err(problem) = config.set(name, node) {
                problems.push(problem);
            }
        }
        config
    }

    fn set(&mut self, name: &str, node: &Node) -> Result<(), Problem> {
        match name {
            "r" => self.rank = rank_of(name, node)?,
            "lora_alpha" => self.alpha = alpha_of(name, node)?,
            "use_rslora" => self.use_rslora = flag_of(name, node)?,
            "use_dora" => self.use_dora = flag_of(name, node)?,
            "lora_bias" => self.lora_bias = flag_of(name, node)?,
            "fan_in_fan_out" => self.fan_in_fan_out = flag_of(name, node)?,
            "bias" => self.bias = bias_of(name, node)?,
            "rank_pattern" => self.rank_pattern = table_of(name, node, rank_of)?,
            "alpha_pattern" => self.alpha_pattern = table_of(name, node, alpha_of)?,
            "modules_to_save" => self.modules_to_save = names_of(name, node)?,
            "target_parameters" => self.target_parameters = names_of(name, node)?,
            "base_model_name_or_path" => self.base_model = text_of(name, node)?,
            "task_type" => self.task_type = text_of(name, node)?,
            "peft_type" => check_type(node)?,
            "init_lora_weights" => check_beginning(node)?,
            _ => check_unknown(name, node)?,
        }
        Ok(())
    }

    /// The scaling of a rank and an alpha.
    pub fn scaling(&self, rank: usize, alpha: f64) -> f64 {
        if self.use_rslora { alpha / (rank as f64).sqrt() } else { alpha / rank as f64 }
    }

    /// Whether a module, or one that it lies in, is among `modules_to_save`.
    pub(super) fn saves(&self, module: &str) -> bool {
        let mut module = module;
        loop {
            let is_named = |name: &String| {
                module == name || module.strip_suffix(name.as_str()).is_some_and(|front| front.ends_with('.'))
            };
            if self.modules_to_save.iter().any(is_named) {
                return true;
            }
            let Some((parent, _)) = module.rsplit_once('.') else { return false };
            module = parent;
        }
    }

    /// The parameters of a module that `target_parameters` names, without the module.
    pub(super) fn parameters_of(&self, module: &str) -> Vec<&str> {
        let of_module = |target: &'_ String| {
            let owner = target.rsplit_once('.').map_or("", |(owner, _)| owner);
            owner.is_empty()
                || module == owner
                || module.strip_suffix(owner).is_some_and(|front| front.ends_with('.'))
        };
        let last = |target: &'_ String| target.len() - target.rsplit('.').next().map_or(0, str::len);
        let mut names: Vec<&str> = self
            .target_parameters
            .iter()
            .filter(|target| of_module(target))
            .filter_map(|target| target.get(last(target)..))
            .collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

/// The patterns of a configuration, compiled.
pub(super) struct Patterns {
    ranks: Vec<(Pattern, usize)>,
    alphas: Vec<(Pattern, f64)>,
}

impl Patterns {
    pub(super) fn new(config: &Config, problems: &mut Vec<Problem>) -> Self {
        let ranks = compiled("rank_pattern", &config.rank_pattern, problems);
        let alphas = compiled("alpha_pattern", &config.alpha_pattern, problems);
        Self { ranks, alphas }
    }

    /// The rank and the alpha of a module.
    pub(super) fn of(&self, config: &Config, module: &str) -> Result<(usize, f64), Problem> {
        let rank = first("rank_pattern", &self.ranks, module)?.unwrap_or(config.rank);
        let alpha = first("alpha_pattern", &self.alphas, module)?.unwrap_or(config.alpha);
        Ok((rank, alpha))
    }
}

fn compiled<T: Copy>(field: &str, table: &[(String, T)], problems: &mut Vec<Problem>) -> Vec<(Pattern, T)> {
    let mut patterns = Vec::new();
    for (key, value) in table {
        match Pattern::new(key) {
            Ok(pattern) => patterns.push((pattern, *value)),
            Err(error) => {
                let message = format!("the pattern {key:?} is no regular expression that is served: {error}");
                problems.push(Problem::new(ProblemCode::Config, field, message));
            }
        }
    }
    patterns
}

fn first<T: Copy>(field: &str, patterns: &[(Pattern, T)], module: &str) -> Result<Option<T>, Problem> {
    for (pattern, value) in patterns {
        match pattern.applies(module) {
            Ok(true) => return Ok(Some(*value)),
            Ok(false) => {}
            Err(error) => {
                let message = format!("a pattern takes too long on {module:?}: {error}");
                return Err(Problem::new(ProblemCode::Config, field, message));
            }
        }
    }
    Ok(None)
}

fn wrong(name: &str, node: &Node, allowed: &str) -> Problem {
    Problem::new(ProblemCode::Config, name, format!("{} came; {allowed} is allowed", node.shown()))
}

fn rank_of(name: &str, node: &Node) -> Result<usize, Problem> {
    let Node::Integer(value) = node else { return Err(wrong(name, node, "a whole number")) };
    match usize::try_from(*value) {
        Ok(rank) if (1..=MAX_RANK).contains(&rank) => Ok(rank),
        _ => {
            let message = format!("a rank of {value} came; 1 to {MAX_RANK} are allowed");
            Err(Problem::new(ProblemCode::Rank, name, message))
        }
    }
}

fn alpha_of(name: &str, node: &Node) -> Result<f64, Problem> {
    let value = match node {
        Node::Integer(value) => *value as f64,
        Node::Float(value) => *value,
        _ => return Err(wrong(name, node, "a number")),
    };
    if value.is_finite() {
        return Ok(value);
    }
    Err(Problem::new(ProblemCode::Alpha, name, format!("an alpha of {value} came; it must be finite")))
}

fn flag_of(name: &str, node: &Node) -> Result<bool, Problem> {
    match node {
        Node::Bool(value) => Ok(*value),
        Node::Null => Ok(false),
        _ => Err(wrong(name, node, "true or false")),
    }
}

fn text_of(name: &str, node: &Node) -> Result<Option<String>, Problem> {
    match node {
        Node::Null => Ok(None),
        Node::Text(text) => Ok(Some(text.clone())),
        _ => Err(wrong(name, node, "a text or null")),
    }
}

fn names_of(name: &str, node: &Node) -> Result<Vec<String>, Problem> {
    let refuse = || wrong(name, node, "a list of texts, or null,");
    match node {
        Node::Null => Ok(Vec::new()),
        Node::Array(items) => items
            .iter()
            .map(|item| if let Node::Text(text) = item { Ok(text.clone()) } else { Err(refuse()) })
            .collect(),
        _ => Err(refuse()),
    }
}

fn table_of<T>(
    name: &str,
    node: &Node,
    value_of: impl Fn(&str, &Node) -> Result<T, Problem>,
) -> Result<Vec<(String, T)>, Problem> {
    match node {
        Node::Null => Ok(Vec::new()),
        Node::Object(fields) => fields
            .iter()
            .map(|(key, value)| Ok((key.clone(), value_of(&format!("{name}[{key:?}]"), value)?)))
            .collect(),
        _ => Err(wrong(name, node, "an object, or null,")),
    }
}

fn bias_of(name: &str, node: &Node) -> Result<BiasMode, Problem> {
    match node {
        Node::Text(text) => [BiasMode::None, BiasMode::All, BiasMode::LoraOnly]
            .into_iter()
            .find(|mode| mode.name() == text)
            .ok_or_else(|| wrong(name, node, "\"none\", \"all\" or \"lora_only\"")),
        Node::Null => Ok(BiasMode::None),
        _ => Err(wrong(name, node, "a text")),
    }
}

fn check_type(node: &Node) -> Result<(), Problem> {
    match node {
        Node::Null => Ok(()),
        Node::Text(text) if text == "LORA" => Ok(()),
        _ => {
            let message = format!("an adapter of type {} came; only \"LORA\" is served", node.shown());
            Err(Problem::new(ProblemCode::Unsupported, "peft_type", message))
        }
    }
}

fn check_beginning(node: &Node) -> Result<(), Problem> {
    if let Node::Text(text) = node {
        let way = text.to_ascii_lowercase();
        if CHANGES_BASE.iter().any(|name| way.starts_with(name)) {
            let message = format!(
                "{text:?} changes the base's weights when a training begins, so that this adapter fits only that \
                 changed base; save it with PEFT's path_initial_model_for_weight_conversion"
            );
            return Err(Problem::new(ProblemCode::Unsupported, "init_lora_weights", message));
        }
    }
    Ok(())
}

fn check_unknown(name: &str, node: &Node) -> Result<(), Problem> {
    if !node.is_truthy() {
        return Ok(());
    }
    if let Some((_, what)) = REFUSED.iter().find(|(refused, _)| *refused == name) {
        let message = format!("it is set, which means {what}; that is not served");
        return Err(Problem::new(ProblemCode::Unsupported, name, message));
    }
    if name.starts_with("use_") {
        let message = "it is set, and nothing is known here about what it changes";
        return Err(Problem::new(ProblemCode::Unsupported, name, message));
    }
    Ok(())
}
