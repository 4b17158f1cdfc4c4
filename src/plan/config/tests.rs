use super::*;

fn config(yaml: &str) -> Config {
    let mut config = Config::new();
    config.merge_yaml(yaml).unwrap();
    config
}

#[test]
fn defaults_are_the_local_profile() {
    let config = Config::new();
    for (key, value) in [
        ("deployment_profile", "local"),
        ("bit_width", "4"),
        ("group_size", "128"),
        ("scheme", "symmetric"),
        ("method", "lsq"),
        ("gain", "auto"),
        ("scale_dtype", "auto"),
        ("on_nonfinite", "error"),
        ("compression", "none"),
        ("modality", "auto"),
        ("num_threads", "0"),
        ("rules", ""),
    ] {
        assert_eq!(config.get(key).unwrap(), value, "{key}");
    }
}

#[test]
fn profiles_give_defaults_that_any_setting_overrides() {
    let mut config = config("deployment_profile: edge\ngroup_size: 64");
    assert_eq!(config.get("bit_width").unwrap(), "2");
    assert_eq!(config.get("group_size").unwrap(), "64");
    assert_eq!(config.get("num_threads").unwrap(), "2");
    config.set("deployment_profile", "cloud").unwrap();
    assert_eq!(config.get("bit_width").unwrap(), "8");
    assert_eq!(config.get("gain").unwrap(), "auto");
    assert_eq!(config.get("group_size").unwrap(), "64");
}

#[test]
fn later_sources_win() {
    let mut config = config("bit_width: 2\nscheme: affine\nmethod: minmax");
    let env = [
        ("AQ_BIT_WIDTH", "4"),
        ("AQ_SCHEME", "symmetric"),
        ("AQ_ISA", "scalar"),
        ("HOME", "x"),
    ];
    config
        .merge_env(env.map(|(k, v)| (k.into(), v.into())))
        .unwrap();
    config.set("bit_width", "8").unwrap();
    assert_eq!(config.get("bit_width").unwrap(), "8");
    assert_eq!(config.get("scheme").unwrap(), "symmetric");
    assert_eq!(config.get("method").unwrap(), "minmax");
}

#[test]
fn recorded_settings_give_the_same_settings_back() {
    let first =
        config("bit_width: 2\nscheme: affine\nmodality: code\nrules: ['a=bits:8', 'b.*=keep']");
    assert_eq!(first.to_json()["modality"], "code");
    assert!(Config::new().to_json().get("modality").is_none());
    let mut second = Config::new();
    second.merge_json(&first.to_json()).unwrap();
    assert_eq!(second.to_json(), first.to_json());
    let mut third = Config::new();
    third.merge_yaml(&first.to_json().to_string()).unwrap();
    assert_eq!(third.to_json(), first.to_json());
}

#[test]
fn an_empty_variable_is_as_if_unset() {
    let mut config = Config::new();
    let env = [("AQ_BIT_WIDTH".to_owned(), String::new())];
    config.merge_env(env).unwrap();
    assert_eq!(config.get("bit_width").unwrap(), "4");
}

#[test]
fn rules_as_text_and_as_mappings() {
    let config = config(
        "rules:\n  - a.*=bits:8\n  - pattern: 're:b$'\n    keep: true\n  - {pattern: c, bits: 2, group: 32}",
    );
    assert_eq!(
        config.get("rules").unwrap(),
        "a.*=bits:8;re:b$=keep;c=bits:2,group:32"
    );
}

#[test]
fn every_key_can_be_set_to_what_it_says() {
    let mut config = config("deployment_profile: cloud\nrules: 'a=bits:2'");
    for (key, _) in KEYS.iter().filter(|row| row.0 != "rules") {
        let value = config.get(key).unwrap();
        config.set(key, &value).unwrap();
        assert_eq!(config.get(key).unwrap(), value);
    }
}

#[test]
fn wrong_settings_name_key_value_and_what_is_allowed() {
    for (yaml, parts) in [
        (
            "bit_with: 4",
            [
                "bit_with",
                "unknown key (expected one of: deployment_profile, bit_width",
            ],
        ),
        (
            "bit_width: 3",
            ["bit_width", "invalid value '3' (expected 2, 4 or 8)"],
        ),
        (
            "group_size: 8",
            ["group_size", "invalid value '8' (expected a multiple of 16"],
        ),
        (
            "method: best",
            ["method", "'best': method must be one of: minmax, lsq, gptq"],
        ),
        (
            "modality: smell",
            [
                "modality",
                "invalid value 'smell' (expected auto, text, code, image",
            ],
        ),
        (
            "compression: gzip",
            [
                "compression",
                "invalid value 'gzip' (expected none or zstd)",
            ],
        ),
        (
            "on_nonfinite: drop",
            [
                "on_nonfinite",
                "invalid value 'drop' (expected error or keep)",
            ],
        ),
        (
            "num_threads: -1",
            [
                "num_threads",
                "invalid value '-1' (expected a number up to 1024",
            ],
        ),
        (
            "deployment_profile: moon",
            ["deployment_profile", "edge, local or cloud"],
        ),
        ("bit_width: [4]", ["bit_width", "not a single value"]),
        ("rules: [{bits: 2}]", ["rules", "has no pattern"]),
        ("rules: [7]", ["rules", "neither text nor a mapping"]),
        ("- 1", ["YAML", ""]),
        ("bit_width: 2\nbit_width: 4", ["YAML", "bit_width"]),
    ] {
        let message = Config::new().merge_yaml(yaml).unwrap_err().to_string();
        assert!(
            parts.iter().all(|part| message.contains(part)),
            "{yaml}: {message}"
        );
    }
    let env = [("AQ_BITS".to_owned(), "4".to_owned())];
    let message = Config::new().merge_env(env).unwrap_err().to_string();
    assert!(
        message.contains("AQ_BITS") && message.contains("unknown key"),
        "{message}"
    );
}
