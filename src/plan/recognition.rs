//! Recognizes what a model generates, with evidence: from the classes that its files name, else
//! from its tensors' names and shapes.

use std::collections::HashMap;

use super::Modality;
use super::families::{Family, component, families, is_encoder};
use crate::tensor::TensorInfo;

/// The prefix of a pseudo-class: the modality stated by a file's metadata.
const SAID: &str = "modality: ";

/// The most letters of a name in a sentence.
const SHOWN: usize = 120;

/// A model's modality and families, with evidence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recognition {
    /// What the model generates.
    pub modality: Modality,
    /// The model's families, whose keep-lists apply.
    pub families: Vec<String>,
    /// Reasons, one sentence each.
    pub evidence: Vec<String>,
}

/// A family that something indicates.
struct Found {
    family: &'static Family,
    /// Whether it is conclusive.
    settles: bool,
    why: String,
}

/// Whether a family's lists apply if a modality was requested.
fn takes(wanted: Modality, family: &Family) -> bool {
    family.modality == wanted || wanted == Modality::Code && family.modality == Modality::Text
}

impl Recognition {
    /// Recognizes a model from its tensors, and from the class names in its files (`modality:
    /// audio` if they state that directly). A `wanted` modality is accepted as given: then only
    /// families of that modality count.
    pub fn new<'a>(
        tensors: impl Iterator<Item = &'a TensorInfo>,
        classes: &[String],
        wanted: Option<Modality>,
    ) -> Self {
        let mut found = by_classes(classes);
        found.extend(by_tensors(tensors));
        if let Some(wanted) = wanted {
            found.retain(|found| takes(wanted, found.family));
        }
        let said = classes.iter().find_map(|class| {
            let modality = Modality::from_name(class.strip_prefix(SAID)?)?;
            (modality != Modality::Unknown).then_some(modality)
        });
        let has = |settles: bool, modality| {
            let mut found = found.iter().filter(|found| found.settles || !settles);
            found.any(|found| found.family.modality == modality)
        };
        let best = |settles| {
            let mut ranked = Modality::BY_RANK.iter().copied();
            ranked.find(|&modality| has(settles, modality))
        };
        let (modality, why) = match (wanted, said) {
            (Some(wanted), _) => (wanted, Some("as set")),
            (None, Some(said)) => (said, Some("from the model's metadata")),
            (None, None) => match best(true).or(best(false)) {
                None => (
                    Modality::Unknown,
                    Some("because it resembles no known family"),
                ),
                Some(best) => {
                    let others = found.iter().any(|found| found.family.modality != best);
                    let rank = match best {
                        _ if !others => None,
                        _ if has(true, best) => Some("because classes take precedence over names"),
                        Modality::Audio => Some("which takes precedence over image and text"),
                        _ => Some("which takes precedence over text"),
                    };
                    (best, rank)
                }
            },
        };
        let sentence = |modality: Modality, why: &str| format!("{}, {why}", modality.name());
        let mut evidence: Vec<String> = why.iter().map(|why| sentence(modality, why)).collect();
        let mut names: Vec<String> = Vec::new();
        for Found { family, why, .. } in &found {
            let why = sentence(family.modality, why);
            if !evidence.contains(&why) {
                evidence.push(why);
            }
            if !names.contains(&family.name) {
                names.push(family.name.clone());
            }
        }
        Self {
            modality,
            families: names,
            evidence,
        }
    }
}

fn by_classes(classes: &[String]) -> Vec<Found> {
    let mut found = Vec::new();
    for class in classes {
        for family in &families().all {
            let settles = family.has_class(class);
            if settles || family.may_have_class(class) {
                let why = format!("by the class {}, of {}", shown(class), family.name);
                found.push(Found {
                    family,
                    settles,
                    why,
                });
            }
        }
    }
    found
}

/// The most components to distinguish: a pipeline has fewer.
const MOST_COMPONENTS: usize = 256;

/// Finds families whose marks are all on tensors of one component.
fn by_tensors<'a>(tensors: impl Iterator<Item = &'a TensorInfo>) -> Vec<Found> {
    let families = families();
    // The first tensor with each mark, for each component; preferably a matrix.
    let mut components: Vec<Vec<Option<&TensorInfo>>> = Vec::new();
    let mut by_name: HashMap<&str, usize> = HashMap::new();
    for tensor in tensors.filter(|tensor| !is_encoder(&tensor.name)) {
        let line = format!("{} {}", tensor.name, tensor.shape);
        let name = component(&tensor.name);
        if components.len() == MOST_COMPONENTS && !by_name.contains_key(name) {
            continue;
        }
        let index = *by_name.entry(name).or_insert_with(|| {
            components.push(vec![None; families.marks.len()]);
            components.len() - 1
        });
        for mark in &families.marks.matches(&line) {
            let first = components[index][mark].get_or_insert(tensor);
            // A weight is better evidence than its bias.
            if first.shape.dims().len() < 2 && tensor.shape.dims().len() >= 2 {
                *first = tensor;
            }
        }
    }
    let mut found = Vec::new();
    for family in &families.all {
        for firsts in &components {
            let marked = family.needs.iter().all(|need| firsts[need.index].is_some());
            let without = family.without.iter().any(|&mark| firsts[mark].is_some());
            if marked && !without {
                found.push(Found {
                    family,
                    settles: false,
                    why: because(family, firsts),
                });
                break; // one is enough to tell
            }
        }
    }
    found
}

/// Lists the tensors that match the family's marks.
fn because(family: &Family, firsts: &[Option<&TensorInfo>]) -> String {
    let mut names: Vec<String> = Vec::new();
    for need in &family.needs {
        let Some(tensor) = firsts[need.index] else {
            continue;
        };
        let name = match need.of_shape {
            true => format!("{} {}", shown(&tensor.name), tensor.shape),
            false => shown(&tensor.name),
        };
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let family = &family.name;
    match names.split_last() {
        Some((last, [])) => format!("by {last}, as in {family}"),
        Some((last, others)) => format!("by {} and {last}, as in {family}", others.join(", ")),
        None => String::new(),
    }
}

/// Returns a name, shortened if it is long.
fn shown(name: &str) -> String {
    match name.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{Dtype, Shape};

    fn recognize(list: &[(&str, &[usize])], classes: &[&str], wanted: &str) -> Recognition {
        let tensors: Vec<TensorInfo> = list
            .iter()
            .map(|(name, dims)| TensorInfo {
                name: (*name).into(),
                dtype: Dtype::F16,
                shape: Shape::new(dims.to_vec()).unwrap(),
            })
            .collect();
        let classes: Vec<String> = classes.iter().map(|class| (*class).into()).collect();
        Recognition::new(tensors.iter(), &classes, Modality::from_name(wanted))
    }

    const DIT: &[(&str, &[usize])] = &[
        ("x_embedder.proj.weight", &[256, 4, 2, 2]),
        ("t_embedder.mlp.0.weight", &[256, 256]),
        ("blocks.0.attn.qkv.weight", &[768, 256]),
    ];

    #[test]
    fn the_evidence_names_tensors_and_family() {
        let found = recognize(DIT, &[], "");
        assert_eq!(found.modality, Modality::Image);
        assert_eq!(found.families, ["DiT"]);
        let sentence = "image, by x_embedder.proj.weight, t_embedder.mlp.0.weight and \
                        blocks.0.attn.qkv.weight, as in DiT";
        assert_eq!(found.evidence, [sentence]);
        let nothing = recognize(&DIT[..1], &[], "");
        assert_eq!(nothing.modality, Modality::Unknown);
        let sentence = "unknown, because it resembles no known family";
        assert_eq!(nothing.evidence, [sentence]);
        assert_eq!(recognize(&[], &[], "").modality, Modality::Unknown);
    }

    #[test]
    fn classes_count_before_names_and_shared_ones_as_names() {
        let found = recognize(DIT, &["StableAudioDiTModel"], "");
        assert_eq!(found.modality, Modality::Audio);
        assert_eq!(found.families, ["Stable Audio", "DiT"]);
        assert_eq!(
            found.evidence[0],
            "audio, because classes take precedence over names"
        );
        let sentence = "audio, by the class StableAudioDiTModel, of Stable Audio";
        assert_eq!(found.evidence[1], sentence);
        let vocoder: &[(&str, &[usize])] = &[("vocoder.conv_pre.weight", &[512, 80, 7])];
        let found = recognize(vocoder, &["UNet2DConditionModel"], "");
        assert_eq!(found.modality, Modality::Audio);
        assert_eq!(
            found.evidence[0],
            "audio, which takes precedence over image and text"
        );
        // An unknown class, and one that merely begins like a known one.
        let found = recognize(&[], &["BertModel", "MDLMForImages"], "");
        assert_eq!(found.modality, Modality::Unknown);
        for (class, modality) in [
            ("FluxTransformer2DModel", Modality::Image),
            ("StableDiffusionPipeline", Modality::Image),
            ("StableDiffusionXLPipeline", Modality::Image),
            ("StableDiffusion3Pipeline", Modality::Image),
            ("DiTTransformer2DModel", Modality::Image),
            ("QwenImageTransformer2DModel", Modality::Image),
            ("WanTransformer3DModel", Modality::Image),
            ("UNet2DConditionModel", Modality::Image),
            ("AutoencoderKL", Modality::Image),
            ("stable-diffusion-xl-v1-base", Modality::Image),
            ("flux-1-dev", Modality::Image),
            ("AudioLDM2Pipeline", Modality::Audio),
            ("AutoencoderOobleck", Modality::Audio),
            ("DreamModel", Modality::Text),
            ("LLaDAModelLM", Modality::Text),
            ("BertModel", Modality::Unknown),
            ("CLIPTextModel", Modality::Unknown),
            ("T5EncoderModel", Modality::Unknown),
            ("ViTForImageClassification", Modality::Unknown),
            ("WhisperForConditionalGeneration", Modality::Unknown),
        ] {
            assert_eq!(recognize(&[], &[class], "").modality, modality, "{class}");
        }
    }

    #[test]
    fn what_metadata_and_settings_say_is_taken_for_granted() {
        let found = recognize(DIT, &["modality: code"], "");
        assert_eq!(found.modality, Modality::Code);
        assert_eq!(found.families, ["DiT"]);
        assert_eq!(found.evidence[0], "code, from the model's metadata");
        let found = recognize(DIT, &["modality: unknown", "modality: x"], "");
        assert_eq!(found.modality, Modality::Image);
        let found = recognize(DIT, &["modality: code"], "audio");
        assert_eq!(found.modality, Modality::Audio);
        assert!(found.families.is_empty());
        assert_eq!(found.evidence, ["audio, as set"]);
        assert!(recognize(DIT, &[], "unknown").families.is_empty());
        assert_eq!(recognize(DIT, &[], "image").families, ["DiT"]);
        assert_eq!(recognize(&[], &["SEDD"], "code").families, ["MDLM"]);
    }

    #[test]
    fn marks_of_a_family_count_in_one_component() {
        let parts: &[(&str, &[usize])] = &[
            ("unet.x_embedder.proj.weight", &[256, 4, 2, 2]),
            ("vae.t_embedder.mlp.0.weight", &[256, 256]),
            ("vae.blocks.0.attn.qkv.weight", &[768, 256]),
        ];
        assert_eq!(recognize(parts, &[], "").modality, Modality::Unknown);
    }

    #[test]
    fn long_names_are_cut() {
        let name = "é".repeat(200);
        let found = recognize(&[(&format!("{name}.vocoder.w"), &[1, 1, 3])], &[], "");
        let cut = "é".repeat(120);
        let sentence = format!("audio, by {cut}… [1, 1, 3], as in vocoder");
        assert_eq!(found.evidence, [sentence]);
    }
}
