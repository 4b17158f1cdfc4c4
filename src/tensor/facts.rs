//! What is known about a model's tensors beyond their descriptions.

use std::collections::BTreeMap;

/// The most letters of a sentence in notes; sentences may list thousands of names.
const SHOWN: usize = 160;

/// What a source knows about its tensors. Plans take it into account.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// Class and architecture names in the model's files.
    pub classes: Vec<String>,
    /// Weights packed by another quantizer, and the tensors beside them: tensor name to scheme.
    pub packed: BTreeMap<String, String>,
    /// The tensor that best shows why packed weights cannot be quantized, and the reason.
    pub refusal: Option<(String, String)>,
    /// Sentences that say how tensors were converted or combined, and name all of them.
    pub evidence: Vec<String>,
    /// Warnings for the user, one sentence each.
    pub warnings: Vec<String>,
}

impl Facts {
    /// Returns the evidence with long sentences shortened.
    pub fn notes(&self) -> Vec<String> {
        self.evidence.iter().map(|text| shortened(text)).collect()
    }
}

/// Shortens a long sentence by leaving out the last of the names that it lists.
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
