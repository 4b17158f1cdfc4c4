//! Families of models: how they are recognized, and which tensors they keep. They are data files,
//! one per family; to add one, write it beside them and name it in [`FILES`].
//!
//! Patterns are regular expressions, in which `{at}` stands for the beginning of a part of a name,
//! and `{top}` for any place outside of blocks, as in a component of a pipeline. Patterns of marks
//! are matched against a tensor's line: its name, a space, and its shape (`conv_in.weight [320, 4,
//! 3, 3]`); those of keep-lists against its name; those of classes against the whole class name.

use std::sync::LazyLock;

use regex::{Regex, RegexSet};
use serde::Deserialize;

use super::modality::Modality;
use crate::tensor::TensorInfo;

/// The list of tensors kept in every model.
const COMMON: &str = include_str!("families/common.yaml");

/// Family files, in the order of recognition; audio first, because others are distinguished from
/// it.
const FILES: &[&str] = &[
    include_str!("families/stable-audio.yaml"),
    include_str!("families/wavegrad.yaml"),
    include_str!("families/diffwave.yaml"),
    include_str!("families/audio-unet.yaml"),
    include_str!("families/mel-vae.yaml"),
    include_str!("families/unet1d.yaml"),
    include_str!("families/conv1d.yaml"),
    include_str!("families/vocoder.yaml"),
    include_str!("families/mel.yaml"),
    include_str!("families/flux.yaml"),
    include_str!("families/dit.yaml"),
    include_str!("families/lumina.yaml"),
    include_str!("families/ltx.yaml"),
    include_str!("families/unet.yaml"),
    include_str!("families/vae.yaml"),
    include_str!("families/llama.yaml"),
    include_str!("families/mdlm.yaml"),
];

/// A family's file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FamilyFile {
    name: String,
    modality: String,
    /// Marks, each of which some tensor must have.
    needs: Vec<String>,
    /// Marks that no tensor may have.
    #[serde(default)]
    without: Vec<String>,
    /// Class names that identify the family, whatever its tensors are called.
    #[serde(default)]
    classes: Vec<String>,
    /// Class names shared with other families.
    #[serde(default)]
    hints: Vec<String>,
    #[serde(default)]
    keep: Vec<KeepFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeepFile {
    pattern: String,
    reason: String,
    /// Whether only matrices with fewer rows than columns are kept.
    #[serde(default)]
    wide: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CommonFile {
    keep: Vec<KeepFile>,
}

/// How a family is recognized, and what it keeps.
pub(super) struct Family {
    pub name: String,
    pub modality: Modality,
    /// Marks, from [`Families::marks`].
    pub needs: Vec<FamilyMark>,
    pub without: Vec<usize>,
    classes: RegexSet,
    hints: RegexSet,
    keep: KeepList,
}

/// A mark that a tensor may have.
pub(super) struct FamilyMark {
    /// Index in [`Families::marks`].
    pub index: usize,
    /// Whether it constrains the shape.
    pub of_shape: bool,
}

/// Name patterns of tensors that are kept, with reasons.
struct KeepList {
    patterns: RegexSet,
    /// The reason, and whether only matrices with fewer rows than columns are kept.
    rows: Vec<(String, bool)>,
}

/// All families.
pub(super) struct Families {
    pub all: Vec<Family>,
    /// The marks of all families, matched together.
    pub marks: RegexSet,
    common: KeepList,
}

/// Returns the families, which are read on first use.
pub(super) fn families() -> &'static Families {
    static FAMILIES: LazyLock<Families> = LazyLock::new(|| Families::read().expect("valid files"));
    &FAMILIES
}

impl Families {
    fn read() -> Result<Self, String> {
        let common: CommonFile = parse(COMMON)?;
        let mut marks = Vec::new();
        let mut all = Vec::new();
        for text in FILES {
            let file: FamilyFile = parse(text)?;
            let mut index_of = |pattern: String| {
                marks.push(pattern);
                marks.len() - 1
            };
            let mark = |pattern: String| FamilyMark {
                of_shape: pattern.contains(r" \["),
                index: index_of(pattern),
            };
            let modality = Modality::from_name(&file.modality);
            all.push(Family {
                modality: modality.ok_or(format!("{}: unknown modality", file.name))?,
                needs: file.needs.into_iter().map(mark).collect(),
                without: file.without.into_iter().map(&mut index_of).collect(),
                classes: whole(&file.classes)?,
                hints: whole(&file.hints)?,
                keep: KeepList::of(file.keep)?,
                name: file.name,
            });
        }
        Ok(Self {
            all,
            marks: set(marks.iter())?,
            common: KeepList::of(common.keep)?,
        })
    }

    /// Returns the families with these names; unknown names are ignored.
    pub fn named(&self, names: &[String]) -> Vec<&Family> {
        let known = |name: &String| self.all.iter().find(|family| family.name == *name);
        names.iter().filter_map(known).collect()
    }
}

impl Family {
    /// Whether a class identifies this family.
    pub fn has_class(&self, class: &str) -> bool {
        self.classes.is_match(class)
    }

    /// Whether a class is shared by this family.
    pub fn may_have_class(&self, class: &str) -> bool {
        self.hints.is_match(class)
    }
}

impl KeepList {
    fn of(keep: Vec<KeepFile>) -> Result<Self, String> {
        Ok(Self {
            patterns: set(keep.iter().map(|row| &row.pattern))?,
            rows: keep.into_iter().map(|row| (row.reason, row.wide)).collect(),
        })
    }

    fn reason(&self, tensor: &TensorInfo) -> Option<&str> {
        let is_wide = tensor.shape.rows() < tensor.shape.cols();
        let matches = self.patterns.matches(&tensor.name);
        let mut rows = matches.into_iter().map(|row| &self.rows[row]);
        let (reason, _) = rows.find(|(_, wide)| is_wide || !wide)?;
        Some(reason)
    }
}

/// Returns why a tensor of a model of these families is kept, unless a rule gives it bits.
pub(super) fn built_in_keep<'a>(tensor: &TensorInfo, of: &[&'a Family]) -> Option<&'a str> {
    if let Some(reason) = families().common.reason(tensor) {
        return Some(reason);
    }
    if !is_encoder(&tensor.name)
        && let Some(reason) = of.iter().find_map(|family| family.keep.reason(tensor))
    {
        return Some(reason);
    }
    // Parameters that are not a layer's weight: tokens for padding, a class or a mask.
    let bare = tensor.name.rsplit('.').next() != Some("weight");
    match tensor.shape.dims().len() {
        1 => Some("1-D tensor"),
        _ if tensor.shape.elements() == 0 => Some("empty"),
        _ if bare && tensor.shape.rows() == 1 => Some("one row"),
        _ => None,
    }
}

/// Whether a tensor belongs to a text or image encoder, which says nothing about the model's
/// output.
pub(super) fn is_encoder(name: &str) -> bool {
    static ENCODER: LazyLock<Regex> = LazyLock::new(|| {
        let parts = "text_encoders?(_[0-9]+)?|text_model|cond_stage_model|conditioner|image_encoder\
                     |vision_model|safety_checker|clip|prompt_encoder";
        Regex::new(&format!(r"(?:^|\.)(?:{parts})\.")).expect("valid")
    });
    ENCODER.is_match(name)
}

/// Returns the pipeline component of a tensor, or an empty string.
pub(super) fn component(name: &str) -> &str {
    static COMPONENT: LazyLock<Regex> = LazyLock::new(|| {
        let parts = "transformer(?:_[0-9]+)?|unet|vae|vqvae|vqgan|vocoder|controlnet\
                     |model\\.diffusion_model|first_stage_model";
        // The component may be wrapped in one more module.
        Regex::new(&format!(r"^(?:[^.]+\.)??(?:{parts})\.")).expect("valid")
    });
    COMPONENT.find(name).map_or("", |found| found.as_str())
}

fn parse<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_saphyr::from_str(text).map_err(|error| error.to_string())
}

/// Compiles patterns that match whole class names.
fn whole(patterns: &[String]) -> Result<RegexSet, String> {
    set(patterns.iter().map(|pattern| format!("^(?:{pattern})$")))
}

fn set(patterns: impl Iterator<Item = impl AsRef<str>>) -> Result<RegexSet, String> {
    // A part that is a number belongs to a block, or to a layer in it.
    let top = r"^(?:(?:[^.0-9]+|(?:transformer|unet|model|net|dit)[^.]*)\.)*";
    let expand = |pattern: &str| {
        let pattern = pattern.replace("{at}", r"(?:^|\.)").replace("{top}", top);
        // Names are ASCII, and Unicode digit classes take long to compile.
        pattern
            .replace(r"\d", "[0-9]")
            .replace(r"\w", "[0-9A-Za-z_]")
    };
    RegexSet::new(patterns.map(|pattern| expand(pattern.as_ref()))).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::tensor::{Dtype, Shape};

    #[test]
    fn every_file_is_read() {
        let families = Families::read().unwrap();
        let names: HashSet<&str> = families.all.iter().map(|f| f.name.as_str()).collect();
        assert_eq!(names.len(), FILES.len());
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/plan/families");
        assert_eq!(std::fs::read_dir(folder).unwrap().count(), FILES.len() + 1);
        for family in &families.all {
            assert_ne!(family.modality, Modality::Unknown, "{}", family.name);
            assert!(!family.needs.is_empty(), "{}", family.name);
        }
    }

    #[test]
    fn a_file_with_a_mistake_is_refused() {
        let file = "name: x\nmodality: image\nneeds: ['a']\nkept: []";
        assert!(parse::<FamilyFile>(file).is_err());
        assert!(set(["("].iter()).is_err());
    }

    fn info(name: &str) -> TensorInfo {
        TensorInfo {
            name: name.into(),
            dtype: Dtype::BF16,
            shape: Shape::new(vec![64, 64]).unwrap(),
        }
    }

    fn kept_by<'a>(family: &'a Family, name: &str) -> Option<&'a str> {
        built_in_keep(&info(name), &[family])
    }

    #[test]
    fn lists_of_families_are_for_the_top_of_a_model() {
        let families = families();
        let find = |name: &str| families.all.iter().find(|f| f.name == name).unwrap();
        for (family, name, reason) in [
            ("DiT", "x_embedder.proj.weight", Some("patch embedding")),
            ("DiT", "pos_embed.proj.weight", Some("patch embedding")),
            ("DiT", "proj_out.weight", Some("final layer")),
            ("DiT", "norm_out.linear.weight", Some("final layer")),
            ("DiT", "final_layer.linear.weight", Some("final layer")),
            ("DiT", "blocks.0.proj_out.weight", None),
            ("DiT", "decoder.mid.attn_1.proj_out.weight", None),
            ("DiT", "blocks.0.adaLN_modulation.1.weight", None),
            ("FLUX", "vector_in.in_layer.weight", Some("time embedding")),
            ("FLUX", "txt_in.weight", Some("input of text")),
            (
                "FLUX",
                "txt_in.individual_token_refiner.blocks.0.mlp.fc1.weight",
                Some("input of text"),
            ),
            ("FLUX", "double_blocks.0.txt_in.weight", None),
            (
                "Lumina",
                "noise_refiner.0.attention.qkv.weight",
                Some("refiner"),
            ),
            ("Lumina", "layers.0.attention.qkv.weight", None),
            (
                "LTX",
                "audio_time_embed.linear.weight",
                Some("time embedding"),
            ),
            ("LTX", "transformer_blocks.0.audio_attn1.to_q.weight", None),
            ("FLUX", "single_transformer_blocks.3.proj_out.weight", None),
            ("UNet", "conv_out.weight", Some("last convolution")),
            ("UNet", "out.2.weight", Some("last convolution")),
            ("UNet", "input_blocks.0.0.weight", Some("first convolution")),
            ("UNet", "input_blocks.1.0.in_layers.2.weight", None),
            ("UNet", "down_blocks.0.attentions.0.proj_out.weight", None),
            ("VAE", "decoder.conv_out.weight", Some("last convolution")),
            ("VAE", "post_quant_conv.weight", Some("latent convolution")),
            ("LLaMA", "lm_head.weight", None),
            ("LLaMA", "model.embed_tokens.weight", None),
            ("MDLM", "output_layer.linear.weight", None),
        ] {
            for prefix in [
                "",
                "transformer.",
                "transformer_2.",
                "model.diffusion_model.",
            ] {
                let name = format!("{prefix}{name}");
                assert_eq!(kept_by(find(family), &name), reason, "{name}");
            }
            // A prompt encoder belongs to another family.
            let name = format!("text_encoder_2.{name}");
            assert_eq!(kept_by(find(family), &name), None, "{name}");
        }
    }

    fn kept(name: &str) -> Option<&'static str> {
        built_in_keep(&info(name), &[])
    }

    #[test]
    fn matrices_kept_by_name() {
        for (name, reason) in [
            ("model.layers.0.input_layernorm.weight", "norm"),
            ("double_blocks.0.img_attn.norm.query_norm.scale", "norm"),
            ("encoder.mid.attn_1.norm.weight", "norm"),
            ("transformer_blocks.3.attn.norm_added_k.weight", "norm"),
            ("blocks.0.norm1.weight", "norm"),
            ("transformer.ln_f.weight", "norm"),
            ("blocks.0.attn.qkv.bias", "bias"),
            ("pos_embed", "position embedding"),
            (
                "bert.embeddings.position_embeddings.weight",
                "position embedding",
            ),
            ("backbone.rotary_emb.inv_freq", "position embedding"),
            ("t_embedder.mlp.0.weight", "time embedding"),
            ("time_embedding.linear_1.weight", "time embedding"),
            (
                "time_text_embed.timestep_embedder.linear_1.weight",
                "time embedding",
            ),
            ("time_in.in_layer.weight", "time embedding"),
            ("time_mlp.1.weight", "time embedding"),
            ("scale_shift_table", "time embedding"),
            ("blocks.0.modulation", "time embedding"),
            ("time_projection.1.weight", "time embedding"),
            ("learnable_pos_embed.pos_emb_t", "position embedding"),
            ("model.Position_Embedding.weight", "position embedding"),
            (
                "block.0.layer.0.relative_attention_bias.weight",
                "position embedding",
            ),
            ("pos_encoder.pe", "position embedding"),
            ("y_embedder.embedding_table.weight", "class embedding"),
        ] {
            assert_eq!(kept(name), Some(reason), "{name}");
            // With the prefix of a pipeline component.
            let name = format!("transformer.{name}");
            assert_eq!(kept(&name), Some(reason), "{name}");
        }
    }

    #[test]
    fn linears_are_quantized() {
        for name in [
            // As many rows as columns: neither a router nor an embedding of a few types.
            "blocks.0.mlp.gate.weight",
            "type_embeddings.weight",
            "blocks.0.modulation.lin.weight",
            "blocks.0.attn.qkv.weight",
            "blocks.0.adaLN_modulation.1.weight",
            "transformer_blocks.0.norm1.linear.weight",
            "model.embed_tokens.weight",
            "lm_head.weight",
            "x_embedder.proj.weight",
            "context_embedder.weight",
            "down_blocks.0.resnets.0.time_emb_proj.weight",
            "conv_in.weight",
            "pos_embed.proj.weight",
        ] {
            assert_eq!(kept(name), None, "{name}");
            assert_eq!(kept(&format!("text_encoder_2.{name}")), None, "{name}");
        }
    }
}
