//! Finds, from tensor names, the layers that read the output of a norm or another layer: their
//! input channels can be scaled by changing the preceding weights.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::tensor::TensorInfo;

/// Rows of a tensor (or elements of a vector) that produce the channels which layers read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Writer {
    /// Index of the tensor.
    pub tensor: usize,
    /// The rows, one for each channel.
    pub rows: Range<usize>,
    /// Whether 1 is added to them before they multiply, as in the scales of adaLN.
    pub one_plus: bool,
}

/// Layers that read the same channels, and all tensors that produce these.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoldSet {
    /// The module that the channels come from.
    pub before: String,
    /// The tensors that produce the channels.
    pub writers: Vec<Writer>,
    /// The weights of the layers that read the channels, as their columns.
    pub readers: Vec<usize>,
    /// Number of channels.
    pub channels: usize,
}

/// A set that cannot be folded, with the reason.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct NotFolded {
    /// The module that the channels come from.
    pub before: String,
    /// Why nothing can be folded into it.
    pub reason: String,
}

/// The known layouts, for messages.
pub const LAYOUTS: &str =
    "LLaMA-like (input_layernorm), LLaDA's (attn_norm) and DiT's (adaLN_modulation.1)";

/// The names in the blocks of a kind of model.
struct Layout {
    /// Tensors that every such block has and that identify it. The text before the first mark is
    /// the prefix of all tensors of the block.
    marks: &'static [&'static str],
    /// Folds, ordered so that rows are scaled before the columns of the same weights, whose maxima
    /// then change.
    folds: &'static [FoldRule],
    /// Other modules and tensors that a block may have. Anything else might read the same channels,
    /// and would then see them scaled.
    others: &'static [&'static str],
}

struct FoldRule {
    writers: &'static [LayoutPart],
    readers: &'static [&'static str],
}

/// One of several equal sections of rows of a module's weight and bias.
struct LayoutPart {
    module: &'static str,
    section: usize,
    sections: usize,
    one_plus: bool,
}

impl LayoutPart {
    const fn all_of(module: &'static str) -> Self {
        Self {
            module,
            section: 0,
            sections: 1,
            one_plus: false,
        }
    }

    /// A shift or scale of adaLN.
    const fn of_six(section: usize, one_plus: bool) -> Self {
        Self {
            module: "adaLN_modulation.1",
            section,
            sections: 6,
            one_plus,
        }
    }
}

const KNOWN: &[Layout] = &[
    // LLaMA, Qwen, Dream.
    Layout {
        // Without the second norm, in some models both attention and MLP read the first.
        marks: &["input_layernorm.weight", "post_attention_layernorm.weight"],
        folds: &[
            FoldRule {
                writers: &[LayoutPart::all_of("self_attn.v_proj")],
                readers: &["self_attn.o_proj"],
            },
            FoldRule {
                writers: &[LayoutPart::all_of("mlp.up_proj")],
                readers: &["mlp.down_proj"],
            },
            FoldRule {
                writers: &[LayoutPart::all_of("input_layernorm")],
                readers: &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
            },
            FoldRule {
                writers: &[LayoutPart::all_of("post_attention_layernorm")],
                readers: &["mlp.gate_proj", "mlp.up_proj"],
            },
        ],
        others: &[
            "self_attn.q_norm",
            "self_attn.k_norm",
            "self_attn.rotary_emb.inv_freq",
        ],
    },
    // LLaDA, whose ff_proj is the gate.
    Layout {
        marks: &["attn_norm.weight", "ff_norm.weight"],
        folds: &[
            FoldRule {
                writers: &[LayoutPart::all_of("v_proj")],
                readers: &["attn_out"],
            },
            FoldRule {
                writers: &[LayoutPart::all_of("up_proj")],
                readers: &["ff_out"],
            },
            FoldRule {
                writers: &[LayoutPart::all_of("attn_norm")],
                readers: &["q_proj", "k_proj", "v_proj"],
            },
            FoldRule {
                writers: &[LayoutPart::all_of("ff_norm")],
                readers: &["ff_proj", "up_proj"],
            },
        ],
        others: &["q_norm", "k_norm", "rotary_emb.inv_freq"],
    },
    // DiT: the rows of adaLN are shift, scale and gate for attention, then for the MLP; those of
    // qkv are queries, keys and values.
    Layout {
        marks: &["adaLN_modulation.1.weight", "attn.qkv.weight"],
        folds: &[
            FoldRule {
                writers: &[LayoutPart {
                    module: "attn.qkv",
                    section: 2,
                    sections: 3,
                    one_plus: false,
                }],
                readers: &["attn.proj"],
            },
            FoldRule {
                writers: &[LayoutPart::of_six(0, false), LayoutPart::of_six(1, true)],
                readers: &["attn.qkv"],
            },
            FoldRule {
                writers: &[LayoutPart::of_six(3, false), LayoutPart::of_six(4, true)],
                readers: &["mlp.fc1"],
            },
        ],
        others: &["attn.q_norm", "attn.k_norm", "mlp.fc2"],
    },
];

/// Returns what can be folded, and what cannot although its block has a known layout, in the order
/// in which scales must be found.
pub fn fold_sets(tensors: &[TensorInfo]) -> Vec<Result<FoldSet, NotFolded>> {
    let names = tensors.iter().enumerate();
    let index: BTreeMap<&str, usize> = names.map(|(i, tensor)| (&tensor.name[..], i)).collect();
    let mut sets = Vec::new();
    for tensor in tensors {
        for layout in KNOWN {
            let Some(prefix) = tensor.name.strip_suffix(layout.marks[0]) else {
                continue;
            };
            let block = LayoutBlock {
                tensors,
                index: &index,
                prefix,
            };
            let starts = prefix.is_empty() || prefix.ends_with('.');
            if starts && layout.marks.iter().all(|mark| block.find(mark).is_some()) {
                let stranger = block.stranger(layout);
                sets.extend(layout.folds.iter().map(|fold| block.set(fold, stranger)));
            }
        }
    }
    sets
}

/// The tensors whose names have the same prefix.
struct LayoutBlock<'a> {
    tensors: &'a [TensorInfo],
    index: &'a BTreeMap<&'a str, usize>,
    prefix: &'a str,
}

/// Returns the module of a weight or bias.
fn module_of(tensor: &str) -> Option<&str> {
    let module = tensor.strip_suffix(".weight");
    module.or_else(|| tensor.strip_suffix(".bias"))
}

impl<'a> LayoutBlock<'a> {
    fn find(&self, tensor: &str) -> Option<usize> {
        let name = format!("{}{tensor}", self.prefix);
        self.index.get(&name[..]).copied()
    }

    /// Returns the first tensor that the layout does not know.
    fn stranger(&self, layout: &Layout) -> Option<&'a str> {
        let known = |tensor: &str| {
            let module = module_of(tensor).unwrap_or(tensor);
            let of_fold = |fold: &FoldRule| {
                fold.readers.contains(&module)
                    || fold.writers.iter().any(|part| part.module == module)
            };
            layout.others.contains(&module)
                || layout.others.contains(&tensor)
                || module != tensor && layout.folds.iter().any(of_fold)
        };
        let names = self.index.range(self.prefix..).map(|(name, _)| *name);
        let mut own = names.map_while(|name| Some((name, name.strip_prefix(self.prefix)?)));
        own.find(|(_, tensor)| !known(tensor)).map(|(name, _)| name)
    }

    fn set(&self, fold: &FoldRule, stranger: Option<&str>) -> Result<FoldSet, NotFolded> {
        let before = format!("{}{}", self.prefix, fold.writers[0].module);
        let set = match stranger {
            Some(name) => Err(format!(
                "the block has '{name}', which might read the same channels"
            )),
            None => self.try_set(fold, &before),
        };
        set.map_err(|reason| NotFolded { before, reason })
    }

    fn try_set(&self, fold: &FoldRule, before: &str) -> Result<FoldSet, String> {
        let mut readers = Vec::new();
        for module in fold.readers {
            let weight = self.find(&format!("{module}.weight"));
            let weight = weight.ok_or_else(|| format!("'{}{module}' is missing", self.prefix))?;
            readers.push(weight);
        }
        let channels = self.tensors[readers[0]].shape.cols();
        for &reader in &readers {
            let TensorInfo { name, shape, .. } = &self.tensors[reader];
            if shape.dims().len() != 2 || shape.cols() != channels || shape.elements() == 0 {
                return Err(format!(
                    "'{name}' of shape {shape} is not a matrix of {channels} columns"
                ));
            }
        }
        let mut writers = Vec::new();
        for part in fold.writers {
            let weight = self.find(&format!("{}.weight", part.module));
            let weight = weight.ok_or_else(|| format!("'{before}.weight' is missing"))?;
            let bias = self.find(&format!("{}.bias", part.module));
            // The added 1 is scaled in the bias.
            if bias.is_none() && part.one_plus {
                return Err("it has no bias to absorb the added 1".to_owned());
            }
            let first = part.section * channels;
            for (tensor, one_plus) in [(Some(weight), false), (bias, part.one_plus)] {
                let Some(tensor) = tensor else { continue };
                self.check_writer(tensor, part.sections, channels)?;
                writers.push(Writer {
                    tensor,
                    rows: first..first + channels,
                    one_plus,
                });
            }
        }
        let set = FoldSet {
            before: before.to_owned(),
            writers,
            readers,
            channels,
        };
        self.check_floats(&set)?;
        Ok(set)
    }

    fn check_writer(&self, tensor: usize, sections: usize, channels: usize) -> Result<(), String> {
        let TensorInfo { name, shape, .. } = &self.tensors[tensor];
        let rows = shape.dims().first().copied();
        if shape.dims().len() <= 2 && rows == channels.checked_mul(sections) {
            return Ok(());
        }
        let what = match sections {
            1 => "rows".to_owned(),
            _ => format!("times {sections} rows"),
        };
        Err(format!(
            "'{name}' of shape {shape} does not have {channels} {what}, as the channels require"
        ))
    }

    fn check_floats(&self, set: &FoldSet) -> Result<(), String> {
        let writers = set.writers.iter().map(|writer| writer.tensor);
        let mut all = writers.chain(set.readers.iter().copied());
        let tensor = all.find(|&tensor| self.tensors[tensor].dtype.float().is_none());
        match tensor.map(|tensor| &self.tensors[tensor]) {
            Some(TensorInfo { name, dtype, .. }) => {
                Err(format!("'{name}' is {dtype}, which cannot be folded"))
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
