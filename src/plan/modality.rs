//! What a model generates, voted by its tensor names.

use std::sync::LazyLock;

use regex::{Regex, RegexSet};

/// What a diffusion model generates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Modality {
    /// Text and code.
    Text,
    /// Images: transformers, UNets and VAEs.
    Image,
    /// Sound.
    Audio,
    /// The names do not say; an answer like the others.
    Unknown,
}

const VOTES: &[(Modality, &[&str])] = &[
    (
        Modality::Text,
        &[r"(^|\.)(embed_tokens|wte|vocab_embed|lm_head)(\.|$)"],
    ),
    (
        Modality::Image,
        &[
            r"(^|\.)(x_embedder|img_in|patch_embed|pos_embed\.proj)(\.|$)",
            r"(^|\.)(double|single_transformer)_blocks\.\d",
            r"(^|\.)(down|up)_blocks\.\d+\.(resnets|attentions)\.",
            r"(^|\.)(encoder|decoder)\.(conv_in|mid|up|down)(\.|$)",
        ],
    ),
    (
        Modality::Audio,
        &[
            r"(^|\.)(preprocess|postprocess)_conv(\.|$)",
            r"(^|\.)film\.\d+\.",
            r"(^|[._])(mel|wavenet|spectrogram|vocoder|dilated_conv)([._]|$)",
        ],
    ),
];

impl Modality {
    /// The name in files and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Image => "image",
            Self::Audio => "audio",
            Self::Unknown => "unknown",
        }
    }

    /// The modality most of whose marks occur among the names; unknown without any or at a draw.
    /// Text encoders have no vote: they read a prompt, whatever is made of it.
    pub fn of_names<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        static MARKS: LazyLock<RegexSet> =
            LazyLock::new(|| RegexSet::new(VOTES.iter().flat_map(|row| row.1)).expect("valid"));
        static ENCODER: LazyLock<Regex> =
            LazyLock::new(|| Regex::new(r"(^|\.)text_encoder(_\d+)?\.").expect("valid"));
        let mut seen = vec![false; MARKS.len()];
        for name in names.filter(|name| !ENCODER.is_match(name)) {
            for mark in &MARKS.matches(name) {
                seen[mark] = true;
            }
        }
        let mut seen = seen.into_iter();
        let mut votes: Vec<(usize, Self)> = VOTES
            .iter()
            .map(|(modality, marks)| {
                let share = seen.by_ref().take(marks.len()).filter(|&seen| seen).count();
                (share, *modality)
            })
            .collect();
        votes.sort_by_key(|&(count, _)| std::cmp::Reverse(count));
        match votes[0].0 {
            0 => Self::Unknown,
            most if most == votes[1].0 => Self::Unknown,
            _ => votes[0].1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_known_layouts() {
        for (names, modality) in [
            (
                &[
                    "model.embed_tokens.weight",
                    "model.layers.0.self_attn.q_proj.weight",
                ][..],
                Modality::Text,
            ),
            (
                &[
                    "backbone.vocab_embed.embedding",
                    "backbone.blocks.0.adaLN_modulation.weight",
                ],
                Modality::Text,
            ),
            (
                &["x_embedder.proj.weight", "blocks.0.attn.qkv.weight"],
                Modality::Image,
            ),
            (
                &["conv_in.weight", "down_blocks.0.resnets.0.conv1.weight"],
                Modality::Image,
            ),
            (&["decoder.conv_in.weight"], Modality::Image),
            (
                &["double_blocks.0.img_mod.lin.weight", "txt_in.weight"],
                Modality::Image,
            ),
            (
                &[
                    "preprocess_conv.weight",
                    "transformer_blocks.0.attn1.to_q.weight",
                ],
                Modality::Audio,
            ),
            (
                &["film.0.input_conv.weight", "upsample.0.block1.weight"],
                Modality::Audio,
            ),
            (
                &[
                    "text_encoder_2.encoder.embed_tokens.weight",
                    "transformer.x_embedder.weight",
                    "vae.decoder.conv_in.weight",
                ],
                Modality::Image,
            ),
            (
                &[
                    "text_encoder.model.embed_tokens.weight",
                    "transformer.preprocess_conv.weight",
                ],
                Modality::Audio,
            ),
            (&["layer1.0.conv1.weight", "fc.weight"], Modality::Unknown),
            (
                &["bert.embeddings.word_embeddings.weight"],
                Modality::Unknown,
            ),
            (&[], Modality::Unknown),
        ] {
            let of = |prefix: &str| {
                let names: Vec<String> = names.iter().map(|n| format!("{prefix}{n}")).collect();
                Modality::of_names(names.iter().map(String::as_str))
            };
            assert_eq!(of(""), modality, "{names:?}");
            // As a component of a pipeline.
            assert_eq!(of("transformer."), modality, "{names:?}");
        }
    }
}
