//! What is known of a model's tensors beside their descriptions.

use std::collections::BTreeMap;

/// Letters of a sentence that notes have at most; sentences may list thousands of names.
const SHOWN: usize = 160;

/// What a source knows of its tensors. Plans are made with it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// Names of classes and architectures that files give.
    pub classes: Vec<String>,
    /// Tensors of weights that another quantizer has packed, and what lies beside them, by name:
    /// the scheme.
    pub packed: BTreeMap<String, String>,
    /// The tensor that tells best why such weights cannot be quantized, and the reason.
    pub refusal: Option<(String, String)>,
    /// What was made of the source's tensors, in sentences that name all of them.
    pub evidence: Vec<String>,
    /// What to tell whoever quantizes them, a sentence each.
    pub warnings: Vec<String>,
}

impl Facts {
    /// The evidence with sentences cut short.
    pub fn notes(&self) -> Vec<String> {
        self.evidence.iter().map(|text| shortened(text)).collect()
    }
}

/// A sentence without the last of the names that it lists, where it is long.
pub fn shortened(sentence: &str) -> String {
    let Some((end, _)) = sentence.char_indices().nth(SHOWN) else {
        return sentence.to_owned();
    };
    match sentence[..end].rfind(", ") {
        Some(comma) => {
            let more = sentence[comma..].matches(", ").count();
            format!("{} and {more} more", &sentence[..comma])
        }
        None => format!("{}…", &sentence[..end]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lists_are_cut_between_names() {
        assert_eq!(shortened("a, b"), "a, b");
        let names: Vec<String> = (0..100).map(|i| format!("layer.{i}")).collect();
        let short = shortened(&names.join(", "));
        let (shown, more) = short.split_once(" and ").unwrap();
        let shown = shown.split(", ").count();
        assert_eq!(more, format!("{} more", 100 - shown));
        assert!((10..20).contains(&shown), "{short}");
        assert_eq!(shortened(&"é".repeat(200)).chars().count(), SHOWN + 1);
    }
}
