//! Ordered rules that give tensors other settings, by name.

use std::fmt;
use std::str::FromStr;

use regex::{Regex, RegexBuilder};

use crate::error::{Error, Result};
use crate::format::{Format, Gain, GroupSize, Method, Recipe, SPECS, ScalePolicy, Scheme};
use crate::tensor::MAX_NAME;

/// The most bytes of a pattern for one name: each letter may be escaped.
const MAX_SPELLED: usize = 3 * MAX_NAME;

/// The most bytes of any other pattern; the plan repeats it for every tensor that it matches.
const MAX_PATTERN: usize = 4 << 10;

/// The most `*` in a glob: matching uses stack for each.
const MAX_STARS: usize = 100;

/// The most bytes of a compiled regular expression, and again while matching.
const MAX_COMPILED: usize = 256 << 10;

/// A tensor name pattern: a glob that must match the whole name, in which `*` also crosses dots
/// (`blocks.*.attn.*`), or, after `re:`, a regular expression that may match anywhere.
#[derive(Debug, Clone)]
pub struct Pattern {
    text: String,
    matcher: Matcher,
}

#[derive(Debug, Clone)]
enum Matcher {
    /// A glob that only one name matches.
    Name(String),
    Glob(glob::Pattern),
    Regex(Regex),
}

impl Pattern {
    /// Whether the pattern matches this name.
    pub fn matches(&self, name: &str) -> bool {
        match &self.matcher {
            Matcher::Name(only) => only == name,
            Matcher::Glob(glob) => glob.matches(name),
            Matcher::Regex(regex) => regex.is_match(name),
        }
    }
}

impl Pattern {
    /// Returns the only name that matches, if there is one.
    pub(super) fn name(&self) -> Option<&str> {
        match &self.matcher {
            Matcher::Name(name) => Some(name),
            _ => None,
        }
    }

    /// Returns the cost of matching a name, in globs. A regular expression may take 5 ms to
    /// compile.
    pub(super) fn cost(&self) -> usize {
        match &self.matcher {
            Matcher::Name(_) => 0,
            Matcher::Glob(_) => 1,
            Matcher::Regex(_) => 10,
        }
    }
}

/// Returns the name that a glob spells out, letter by letter or as `[*]`.
fn spelled_out(glob: &str) -> Option<String> {
    let mut name = String::new();
    let mut letters = glob.chars();
    while let Some(letter) = letters.next() {
        name.push(match letter {
            '*' | '?' => return None,
            '[' => {
                let escaped = letters.next().filter(|&letter| letter != '!')?;
                letters.next().filter(|&letter| letter == ']')?;
                escaped
            }
            letter => letter,
        });
    }
    Some(name)
}

impl FromStr for Pattern {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refuse = |error: String| Error::config("pattern", format!("'{text}': {error}"));
        let too_long = || {
            let reason = format!("too long: {} bytes", text.len());
            Err(Error::config("pattern", reason))
        };
        if text.len() > MAX_SPELLED {
            return too_long();
        }
        let matcher = match text.strip_prefix("re:") {
            Some(_) if text.len() > MAX_PATTERN => return too_long(),
            Some(regex) => Matcher::Regex(compile(regex).map_err(|error| {
                // The last line says what is wrong; those before draw where.
                let text = error.to_string();
                refuse(text.lines().last().unwrap_or_default().trim().to_owned())
            })?),
            None if text.is_empty() => return Err(refuse("is empty".into())),
            None => match spelled_out(text) {
                Some(name) => Matcher::Name(name),
                None if text.len() > MAX_PATTERN => return too_long(),
                None if text.matches('*').count() > MAX_STARS => {
                    return Err(refuse(format!("over {MAX_STARS} times *")));
                }
                None => {
                    let glob = glob::Pattern::new(text);
                    Matcher::Glob(glob.map_err(|error| refuse(error.msg.to_owned()))?)
                }
            },
        };
        Ok(Self {
            text: text.to_owned(),
            matcher,
        })
    }
}

fn compile(regex: &str) -> std::result::Result<Regex, regex::Error> {
    RegexBuilder::new(regex)
        .size_limit(MAX_COMPILED)
        .dfa_size_limit(MAX_COMPILED)
        .build()
}

impl Pattern {
    /// Makes the pattern that matches only this name.
    pub fn literal(name: &str) -> Result<Self> {
        if name.is_empty() {
            return "re:^$".parse();
        }
        let glob = glob::Pattern::escape(name);
        match glob.strip_prefix("re:") {
            // Must not be taken for a regular expression.
            Some(rest) => format!("[r]e:{rest}").parse(),
            None => glob.parse(),
        }
    }
}

/// What a rule changes for the tensors that its pattern matches; everything else is unchanged.
#[derive(Debug, Clone)]
pub struct Rule {
    /// The pattern.
    pub pattern: Pattern,
    /// Whether to keep the tensors. Giving bits undoes an earlier keep, including built-in ones.
    pub keep: bool,
    /// Width of the codes.
    pub format: Option<Format>,
    /// Weights per scale.
    pub group_size: Option<GroupSize>,
    /// With or without biases.
    pub scheme: Option<Scheme>,
    /// How scales are chosen.
    pub method: Option<Method>,
    /// Whether amplitude is restored.
    pub gain: Option<Gain>,
    /// How scales are stored.
    pub scales: Option<ScalePolicy>,
    /// Cosine that the tensors must reach.
    pub min_cosine: Option<f64>,
}

impl Rule {
    /// Makes a rule that changes nothing yet.
    pub fn new(pattern: Pattern) -> Self {
        Self {
            pattern,
            keep: false,
            format: None,
            group_size: None,
            scheme: None,
            method: None,
            gain: None,
            scales: None,
            min_cosine: None,
        }
    }

    /// Makes a rule that keeps the tensors.
    pub fn keep(pattern: Pattern) -> Self {
        Self {
            keep: true,
            ..Self::new(pattern)
        }
    }

    /// Makes a rule that gives a tensor this recipe.
    pub fn recipe(pattern: Pattern, recipe: &Recipe) -> Self {
        Self {
            pattern,
            keep: false,
            format: Some(recipe.format()),
            group_size: recipe.encoding.group_size(),
            scheme: recipe.encoding.scheme(),
            method: Some(recipe.method),
            gain: Some(recipe.gain),
            scales: Some(recipe.scales),
            min_cosine: None,
        }
    }

    /// Sets one of bits, group, scheme, method, gain, scale_dtype, min_cosine and keep.
    ///
    /// # Errors
    /// The key is unknown, or the value is not allowed.
    pub fn set(&mut self, key: &str, value: &str) -> Result<()> {
        match key {
            "bits" | "bit_width" => self.format = Some(parse_bits(key, value)?),
            "group" | "group_size" => self.group_size = Some(parse_group_size(key, value)?),
            "scheme" => self.scheme = Some(parse_named(key, value)?),
            "method" => self.method = Some(parse_named(key, value)?),
            "gain" => self.gain = Some(parse_named(key, value)?),
            "scale_dtype" => self.scales = Some(parse_named(key, value)?),
            "min_cosine" => {
                let refuse = || {
                    Error::config(
                        key,
                        format!("invalid value '{value}' (expected a cosine from 0 to 1, or none)"),
                    )
                };
                self.min_cosine = Some(parse_min_cosine(value).ok_or_else(refuse)?);
            }
            "keep" => self.keep = parse_bool(key, value)?,
            _ => {
                let allowed = "bits, group, scheme, method, gain, scale_dtype, min_cosine, keep";
                return Err(Error::config(
                    key,
                    format!("unknown setting (expected one of: {allowed})"),
                ));
            }
        }
        Ok(())
    }

    /// Applies the rule to a recipe, except for its bits.
    pub(super) fn change(&self, recipe: &mut Recipe) {
        let format = recipe.format();
        recipe.method = self
            .method
            .map_or(recipe.method, |method| format.method(method));
        recipe.gain = self.gain.unwrap_or(recipe.gain);
        recipe.scales = self.scales.unwrap_or(recipe.scales);
        recipe.encoding = recipe.encoding.chosen(|choice| {
            choice.group_size = self.group_size.unwrap_or(choice.group_size);
            choice.scheme = self.scheme.unwrap_or(choice.scheme);
            choice.scale_dtype = recipe.scales.planned();
        });
    }

    /// Adds settings in the format of `--rule`, after the `=`.
    pub(super) fn with_settings(mut self, settings: &str) -> Result<Self> {
        for setting in settings.split(',') {
            let (key, value) = setting.split_once(':').unwrap_or((setting, "true"));
            self.set(key.trim(), value.trim())?;
        }
        self.check()?;
        Ok(self)
    }

    /// Checks that the rule changes something, and does not contradict itself.
    pub(super) fn check(&self) -> Result<()> {
        let sets = self.format.is_some()
            || self.group_size.is_some()
            || self.scheme.is_some()
            || self.method.is_some()
            || self.gain.is_some()
            || self.scales.is_some()
            || self.min_cosine.is_some();
        let reason = match (self.keep, sets) {
            (true, true) => "keeps and quantizes at once",
            (false, false) => "changes nothing",
            _ => return Ok(()),
        };
        Err(Error::config("", reason))
    }
}

/// Parses the format of `--rule`: `PATTERN=bits:8,group:64`, or `PATTERN=keep`.
impl FromStr for Rule {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let read = || {
            let Some((pattern, settings)) = text.rsplit_once('=') else {
                return Err(Error::config("", "expected PATTERN=key:value,…"));
            };
            Self::new(pattern.parse()?).with_settings(settings)
        };
        read().map_err(|error| error.within(&format!("rule '{text}'")))
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let settings = [
            self.keep.then(|| "keep".to_owned()),
            self.format
                .map(|format| format!("bits:{}", format.spec().setting)),
            self.group_size.map(|size| format!("group:{size}")),
            self.scheme.map(|scheme| format!("scheme:{scheme}")),
            self.method.map(|method| format!("method:{method}")),
            self.gain.map(|gain| format!("gain:{gain}")),
            self.scales.map(|scales| format!("scale_dtype:{scales}")),
            self.min_cosine.map(|cosine| match cosine {
                NO_MIN_COSINE => "min_cosine:none".to_owned(),
                cosine => format!("min_cosine:{cosine}"),
            }),
        ];
        let settings: Vec<String> = settings.into_iter().flatten().collect();
        write!(f, "{}={}", self.pattern.text, settings.join(","))
    }
}

pub(super) fn parse_bits(key: &str, value: &str) -> Result<Format> {
    // Numbers may be written in more ways than one.
    let number = value.parse().map(|number: u64| number.to_string());
    let setting = number.as_deref().unwrap_or(value);
    let spec = SPECS.iter().find(|spec| spec.setting == setting);
    spec.map(|spec| spec.format).ok_or_else(|| {
        let settings: Vec<&str> = SPECS.iter().map(|spec| spec.setting).collect();
        let expected = match settings.split_last() {
            Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
            _ => settings.concat(),
        };
        Error::config(
            key,
            format!("invalid value '{value}' (expected {expected})"),
        )
    })
}

pub(super) fn parse_group_size(key: &str, value: &str) -> Result<GroupSize> {
    value.parse().ok().and_then(GroupSize::new).ok_or_else(|| {
        let allowed = "expected a multiple of 16 from 16 to 1024, or 0 for the whole row";
        Error::config(key, format!("invalid value '{value}' ({allowed})"))
    })
}

pub(super) fn parse_named<T: FromStr<Err: fmt::Display>>(key: &str, value: &str) -> Result<T> {
    value
        .parse()
        .map_err(|error: T::Err| Error::config(key, format!("'{value}': {error}")))
}

/// A threshold that every cosine reaches.
pub const NO_MIN_COSINE: f64 = -1.0;

pub(super) fn parse_min_cosine(value: &str) -> Option<f64> {
    match value {
        "none" => Some(NO_MIN_COSINE),
        _ => value.parse().ok().filter(|c| (0.0..=1.0).contains(c)),
    }
}

fn parse_bool(key: &str, value: &str) -> Result<bool> {
    value.parse().map_err(|_| {
        Error::config(
            key,
            format!("invalid value '{value}' (expected true or false)"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_match_whole_names_and_regexes_anywhere() {
        let matches = |pattern: &str, name: &str| pattern.parse::<Pattern>().unwrap().matches(name);
        assert!(matches("blocks.*.attn.*", "blocks.0.attn.qkv.weight"));
        assert!(!matches("attn", "blocks.0.attn.qkv.weight"));
        assert!(matches("模型.?.[01].*", "模型.层.0.权重"));
        assert!(matches(
            "*[kv]_proj.weight",
            "model.layers.3.self_attn.k_proj.weight"
        ));
        assert!(matches(
            r"re:layers\.(0|1)\.",
            "model.layers.1.mlp.up_proj.weight"
        ));
        assert!(!matches(
            r"re:layers\.(0|1)\.",
            "model.layers.11.mlp.up_proj.weight"
        ));
    }

    #[test]
    fn globs_that_spell_a_name_out_are_that_name() {
        for (glob, name) in [
            ("a.b", Some("a.b")),
            ("[*][?][[][]]", Some("*?[]")),
            ("a]b", Some("a]b")),
            ("[r]e:x", Some("re:x")),
            ("a*", None),
            ("a?", None),
            ("[ab]", None),
            ("[!a]", None),
        ] {
            let pattern: Pattern = glob.parse().unwrap();
            assert_eq!(pattern.name(), name, "{glob}");
            assert!(name.is_none_or(|name| pattern.matches(name)), "{glob}");
        }
        assert!("[".parse::<Pattern>().is_err());
        assert!("[a".parse::<Pattern>().is_err());
    }

    #[test]
    fn rules_read_and_write_the_same_text() {
        for text in [
            "a.*=bits:8,group:64",
            "re:x=y=keep",
            "*=bits:2,group:0,scheme:affine,method:minmax,gain:lsq,scale_dtype:f32",
            "a=bits:4,min_cosine:0.97",
            "a=min_cosine:none",
        ] {
            assert_eq!(text.parse::<Rule>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn wrong_rules_say_what_is_allowed() {
        for (text, part) in [
            ("a", "PATTERN=key:value"),
            ("a=bits:3", "invalid value '3' (expected 2, 4 or 8)"),
            (
                "a=group:100",
                "invalid value '100' (expected a multiple of 16",
            ),
            (
                "a=scheme:odd",
                "'odd': scheme must be one of: symmetric, affine",
            ),
            (
                "a=min_cosine:2",
                "invalid value '2' (expected a cosine from 0 to 1",
            ),
            (
                "a=colour:red",
                "unknown setting (expected one of: bits, group",
            ),
            ("a=keep,bits:4", "keeps and quantizes"),
            ("a=keep:false", "changes nothing"),
            ("[=keep", "rule '[=keep': pattern: '['"),
            ("re:(=keep", "pattern: 're:(': error: unclosed group"),
            ("a=bits:4:3", "rule 'a=bits:4:3': bits: invalid value '4:3'"),
            ("=keep", "is empty"),
        ] {
            let message = text.parse::<Rule>().unwrap_err().to_string();
            assert!(message.contains(part), "{text}: {message}");
        }
    }
}
