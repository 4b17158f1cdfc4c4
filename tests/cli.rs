//! The command line: its output, its exit codes, and agreement with the library.

use arrowquant::model::Model;
use serde_json::Value;

use crate::common::*;

fn text(path: &std::path::Path) -> String {
    path.to_str().unwrap().to_owned()
}

#[track_caller]
fn fails(args: &[&str], code: i32, parts: &[&str]) {
    let output = arrowquant(args);
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(code), "{message}");
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in {message:?}");
    }
    assert!(!message.contains("panicked"), "{message}");
}

#[test]
fn the_first_command_of_the_readme_works_and_its_output_verifies() {
    let folder = tempfile::tempdir().unwrap();
    let model = text(&demo_model("dit-digits.safetensors"));
    let output = text(&folder.path().join("dit-int4.parquet"));
    let printed = arrowquant_ok(["quantize", &model, &output, "--bits", "4"]);
    assert!(
        printed.contains("dit-int4.parquet") && printed.contains("bits per weight"),
        "{printed}"
    );
    let verified = arrowquant_ok([
        "verify",
        &output,
        "--against",
        &model,
        "--min-cosine",
        "0.99",
    ]);
    assert!(verified.contains("52 tensors verified"), "{verified}");
    let back = text(&folder.path().join("back.safetensors"));
    arrowquant_ok(["dequantize", &output, &back]);
    let original = arrowquant::source::open(model.as_ref()).unwrap();
    let source = arrowquant::source::open(back.as_ref()).unwrap();
    let sorted = |source: &dyn arrowquant::source::Source| {
        let mut tensors = source.tensors().to_vec();
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        tensors
    };
    assert_eq!(sorted(source.as_ref()), sorted(original.as_ref()));
}

#[test]
fn usage_errors_exit_with_2() {
    let folder = small_model();
    let input = text(&folder.path().join("model.safetensors"));
    let output = text(&folder.path().join("m.parquet"));
    let quantize = |flags: &[&str], parts: &[&str]| {
        let args: Vec<&str> = ["quantize", &input, &output]
            .into_iter()
            .chain(flags.iter().copied())
            .collect();
        fails(&args, 2, parts);
    };
    fails(&[], 2, &["Usage"]);
    fails(&["fly"], 2, &["fly"]);
    fails(&["quantize", &input], 2, &["OUTPUT"]);
    quantize(
        &["--bits", "3"],
        &["error: --bits: invalid value '3' (expected 2, 4 or 8)"],
    );
    quantize(
        &["--group-size", "100"],
        &["--group-size: invalid value '100' (expected a multiple of 16"],
    );
    quantize(
        &["--scheme", "odd"],
        &["--scheme: 'odd'", "symmetric, affine"],
    );
    quantize(&["--method", "best"], &["--method: 'best'", "minmax, lsq"]);
    quantize(
        &["--profile", "moon"],
        &["--profile: invalid value 'moon' (expected edge, local or cloud"],
    );
    quantize(
        &["--threads", "many"],
        &["--threads: invalid value 'many' (expected a number"],
    );
    quantize(&["--rule", "w"], &["rule 'w': expected PATTERN=key:value"]);
    quantize(&["--keep", "["], &["pattern: '['"]);
    quantize(&["--plan", "p.json", "--bits", "4"], &["--plan"]);
    fails(
        &["quantize", &input, "out.bin"],
        2,
        &["'out.bin' does not end in .parquet"],
    );
    fails(
        &["verify", &output, "--min-cosine", "2"],
        2,
        &["--min-cosine"],
    );
    fails(
        &["dequantize", &output, "x.safetensors", "--dtype", "f8"],
        2,
        &["--dtype: 'f8': dtype must be one of: f32, f16, bf16"],
    );
    assert_eq!(names_in(folder.path()), ["model.safetensors"]);
}

#[test]
fn failed_work_exits_with_1() {
    let folder = small_model();
    let input = text(&folder.path().join("model.safetensors"));
    let output = text(&folder.path().join("m.parquet"));
    fails(
        &["quantize", "none.safetensors", &output],
        1,
        &["error: none.safetensors: cannot open"],
    );
    fails(&["plan", "none.safetensors"], 1, &["none.safetensors"]);
    fails(
        &["inspect", &input],
        1,
        &["model.safetensors: not a quantized model but weights; `plan` shows"],
    );
    fails(&["verify", &input], 1, &["not a quantized model"]);
    fails(
        &["dequantize", &input, &output],
        1,
        &["not a quantized model"],
    );
    fails(&["inspect", "Cargo.toml"], 1, &["not a Parquet file"]);
    fails(
        &["quantize", &input, &output, "--config", "none.yaml"],
        1,
        &["none.yaml: cannot read"],
    );
    fails(
        &["quantize", &input, &output, "--plan", &input],
        1,
        &["error: "],
    );
    let rule = "position*=bits:8";
    fails(
        &["quantize", &input, &output, "--rule", rule],
        1,
        &["model.safetensors: tensor 'position_ids'", "i64"],
    );
    assert_eq!(names_in(folder.path()), ["model.safetensors"]);
}

#[test]
fn shells_and_man_are_told_of_every_command() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let printed = arrowquant_ok(["completions", shell]);
        assert!(
            printed.contains("evolve") && printed.contains("max-size"),
            "{shell}"
        );
    }
    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("new/man1");
    arrowquant_ok(["man".as_ref(), pages.as_os_str()]);
    let commands = [
        "analyze",
        "completions",
        "dequantize",
        "evolve",
        "fold",
        "inspect",
        "man",
    ];
    let more = ["merge", "plan", "quantize", "verify"];
    let names = commands.iter().chain(&more);
    let names = names.map(|name| format!("arrowquant-{name}.1"));
    let mut expected: Vec<String> = names.chain(["arrowquant.1".to_owned()]).collect();
    expected.sort();
    assert_eq!(names_in(&pages), expected);
    let quantize = std::fs::read_to_string(pages.join("arrowquant-quantize.1")).unwrap();
    assert!(quantize.contains(".TH arrowquant-quantize 1"), "{quantize}");
}

#[test]
fn an_error_is_one_line() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("c.yaml"), "bit_width: [\n").unwrap();
    let config = text(&folder.path().join("c.yaml"));
    let output = arrowquant(["plan", "x", "--config", &config]);
    assert_eq!(output.status.code(), Some(2));
    let message = stderr(&output);
    assert_eq!(message.lines().count(), 1, "{message}");
    assert!(message.contains("c.yaml"), "{message}");
}

#[test]
fn settings_come_from_profile_yaml_environment_and_flags() {
    let folder = small_model();
    let input = text(&folder.path().join("model.safetensors"));
    let yaml = text(&folder.path().join("c.yaml"));
    std::fs::write(
        &yaml,
        "group_size: 32\nscheme: affine\nrules:\n  - 'conv.*=keep'\n",
    )
    .unwrap();
    let args = [
        "plan",
        &input,
        "--profile",
        "edge",
        "--config",
        &yaml,
        "--method",
        "minmax",
        "--json",
    ];
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_arrowquant"))
        .args(args)
        .env("AQ_SCHEME", "symmetric")
        .env("AQ_GAIN", "lsq")
        .output()
        .unwrap();
    let plan: Value = serde_json::from_slice(&output.stdout).unwrap();
    let config = &plan["config"];
    assert_eq!(config["bit_width"], 2);
    assert_eq!(config["group_size"], 32);
    assert_eq!(config["scheme"], "symmetric");
    assert_eq!(config["gain"], "lsq");
    assert_eq!(config["method"], "minmax");
    assert_eq!(config["rules"], serde_json::json!(["conv.*=keep"]));
}

#[test]
fn a_variable_that_names_no_setting_is_an_error() {
    let folder = small_model();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_arrowquant"))
        .args(["plan", &text(folder.path())])
        .env("AQ_BITS", "4")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("environment variable AQ_BITS"));
}

#[test]
fn an_unknown_isa_is_an_error_and_scalar_gives_the_same_bytes() {
    let folder = small_model();
    let input = text(&folder.path().join("model.safetensors"));
    let run = |isa: &str, output: &str| {
        std::process::Command::new(env!("CARGO_BIN_EXE_arrowquant"))
            .args(["quantize", &input, &text(&folder.path().join(output))])
            .env("AQ_ISA", isa)
            .output()
            .unwrap()
    };
    let output = run("mmx", "x.parquet");
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("AQ_ISA: must be one of: scalar"));
    assert!(run("scalar", "scalar.parquet").status.success());
    arrowquant_ok([
        "quantize",
        &input,
        &text(&folder.path().join("best.parquet")),
    ]);
    let bytes = |name: &str| std::fs::read(folder.path().join(name)).unwrap();
    assert!(bytes("scalar.parquet") == bytes("best.parquet"));
}

#[test]
fn rules_and_keeps_count_in_the_order_given() {
    let folder = small_model();
    let input = text(&folder.path().join("model.safetensors"));
    let format_of = |flags: &[&str]| {
        let args = ["plan", &input, "--json"]
            .into_iter()
            .chain(flags.iter().copied());
        let plan: Value = serde_json::from_str(&arrowquant_ok(args)).unwrap();
        let tensors = plan["tensors"].as_array().unwrap().clone();
        let conv = tensors
            .into_iter()
            .find(|t| t["name"] == "conv.weight")
            .unwrap();
        conv["format"].as_str().unwrap().to_owned()
    };
    assert_eq!(
        format_of(&["--keep", "conv*", "--rule", "*.weight=bits:8"]),
        "int8"
    );
    assert_eq!(
        format_of(&["--rule", "*.weight=bits:8", "--keep", "conv*"]),
        "keep"
    );
    assert_eq!(
        format_of(&[
            "--rule",
            "conv*=bits:2",
            "--rule",
            "*.weight=bits:8",
            "--keep",
            "blocks*"
        ]),
        "int8"
    );
}

#[test]
fn the_report_overwrites_neither_input_nor_output() {
    let folder = small_model();
    let input = text(&folder.path().join("model.safetensors"));
    let output = text(&folder.path().join("m.parquet"));
    let before = std::fs::read(&input).unwrap();
    let run = ["quantize", &input, &output, "--report"];
    let with = |report: &'static str| [&run[..], &[report]].concat();
    fails(
        &[&run[..], &[&input]].concat(),
        1,
        &["would be overwritten"],
    );
    fails(
        &[&run[..], &[&output]].concat(),
        2,
        &["--report", "is the output"],
    );
    let page = text(&folder.path().join("r.html"));
    let twice = ["--report", &page, "--report"];
    fails(
        &[&run[..3], &twice, &[&page]].concat(),
        2,
        &["--report", "is given twice"],
    );
    fails(
        &[&run[..3], &twice, &[&output]].concat(),
        2,
        &["--report", "is the output"],
    );
    fails(&with("/no/such/folder/r.json"), 1, &["there is no folder"]);
    assert!(std::fs::read(&input).unwrap() == before);
    assert_eq!(names_in(folder.path()), ["model.safetensors"]);
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_under_the_output_of_a_command_is_a_failure() {
    let folder = small_model();
    let full = std::fs::File::options()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_arrowquant"))
        .args(["plan", &text(folder.path()), "--json"])
        .stdout(full)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("standard output: cannot write"));
}

#[test]
fn control_characters_in_names_do_not_reach_the_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let name = "a\u{1b}[31mb\nc  d.weight";
    let input = text(&folder.path().join("m.safetensors"));
    let output = text(&folder.path().join("m.parquet"));
    std::fs::write(
        &input,
        safetensors(&[f32_tensor(name, &[2, 32], &noise(1, 64))]),
    )
    .unwrap();
    let printed = [
        arrowquant_ok(["plan", &input]),
        arrowquant_ok(["quantize", &input, &output]),
        arrowquant_ok(["inspect", &output]),
        arrowquant_ok(["verify", &output, "--against", &input]),
    ];
    for printed in printed {
        assert!(printed.contains(r"a\u{1b}[31mb\nc  d.weight"), "{printed}");
    }
    std::fs::write(
        &input,
        safetensors(&[f32_tensor(name, &[1, 2], &[f32::NAN; 2])]),
    )
    .unwrap();
    fails(
        &["quantize", &input, &output],
        1,
        &[r"\u{1b}[31mb c  d.weight"],
    );
    let back = arrowquant_ok(["inspect", &output, "--json"]);
    let json: Value = serde_json::from_str(&back).unwrap();
    assert_eq!(json["tensors"][0]["name"], name);
}

#[test]
fn tensors_that_become_no_smaller_are_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let input = text(&folder.path().join("m.safetensors"));
    let tensors = [
        bf16_tensor("a.weight", &[9, 1], &noise(1, 9)),
        bf16_tensor("b.weight", &[9, 1], &noise(1, 9)),
    ];
    std::fs::write(&input, safetensors(&tensors)).unwrap();
    let output = arrowquant(["plan", &input]);
    let expected =
        "warning: a.weight and 1 others would be no smaller than kept (rows too short)\n";
    assert_eq!(stderr(&output), expected);
}

/// Quantizes a folder's model and flips a bit in the codes of `conv.weight`.
fn damaged(folder: &std::path::Path) -> String {
    let output = folder.join("m.parquet");
    quantize(&folder.join("model.safetensors"), &output, &[]).unwrap();
    let model = Model::open(&output).unwrap();
    let planes = model.planes(model.find("conv.weight").unwrap(), 0).unwrap();
    let mut bytes = std::fs::read(&output).unwrap();
    let codes = planes.codes();
    let at = bytes
        .windows(codes.len())
        .position(|window| window == codes)
        .unwrap();
    bytes[at + 9] ^= 4;
    drop((planes, model));
    std::fs::write(&output, bytes).unwrap();
    text(&output)
}

#[test]
fn dequantize_refuses_damaged_weights() {
    let folder = small_model();
    let output = damaged(folder.path());
    let back = text(&folder.path().join("back.safetensors"));
    let expected = "tensor 'conv.weight', tile 0: checksum";
    fails(&["dequantize", &output, &back], 1, &[expected]);
    assert_eq!(names_in(folder.path()), ["m.parquet", "model.safetensors"]);
}

#[test]
fn a_rule_that_matches_nothing_is_a_warning() {
    let folder = small_model();
    let output = arrowquant(["plan", &text(folder.path()), "--keep", "typo.*"]);
    assert!(output.status.success());
    assert_eq!(
        stderr(&output),
        "warning: rule typo.*=keep matches no tensor\n"
    );
}

#[test]
fn planned_bytes_are_those_of_the_file() {
    let folder = small_model();
    let input = text(&folder.path().join("model.safetensors"));
    for flags in [
        &["--bits", "2"][..],
        &["--bits", "4", "--scheme", "affine"],
        &["--bits", "8", "--group-size", "0"],
    ] {
        let args = ["plan", &input, "--json"]
            .into_iter()
            .chain(flags.iter().copied());
        let plan: Value = serde_json::from_str(&arrowquant_ok(args)).unwrap();
        let output = text(&folder.path().join("m.parquet"));
        arrowquant_ok(
            ["quantize", &input, &output, "--quiet"]
                .into_iter()
                .chain(flags.iter().copied()),
        );
        let inspected: Value =
            serde_json::from_str(&arrowquant_ok(["inspect", &output, "--json"])).unwrap();
        let find = |tensors: &Value, name: &Value| {
            tensors
                .as_array()
                .unwrap()
                .iter()
                .find(|t| t["name"] == *name)
                .unwrap()
                .clone()
        };
        let mut total = 0;
        for planned in plan["tensors"].as_array().unwrap() {
            let found = find(&inspected["tensors"], &planned["name"]);
            assert_eq!(found["bytes"], planned["bytes"], "{planned}");
            assert_eq!(
                found["bits_per_weight"], planned["bits_per_weight"],
                "{planned}"
            );
            total += found["bytes"].as_u64().unwrap();
        }
        assert_eq!(plan["total_bytes"], total);
        assert_eq!(plan["modality"], "unknown");
    }
}

#[test]
fn the_report_is_what_the_file_holds() {
    let folder = small_model();
    let input = text(&folder.path().join("model.safetensors"));
    let (output, report) = (
        text(&folder.path().join("m.parquet")),
        text(&folder.path().join("r.json")),
    );
    let printed = arrowquant_ok(["quantize", &input, &output, "--report", &report, "--quiet"]);
    assert_eq!(printed, "");
    let report: Value = serde_json::from_str(&std::fs::read_to_string(report).unwrap()).unwrap();
    let inspected: Value =
        serde_json::from_str(&arrowquant_ok(["inspect", &output, "--json"])).unwrap();
    assert_eq!(report["output_bytes"], inspected["file_bytes"]);
    let model = Model::open(output.as_ref()).unwrap();
    for tensor in report["tensors"].as_array().unwrap() {
        let index = model.find(tensor["name"].as_str().unwrap()).unwrap();
        let tile = &model.tensors()[index].tiles[0].tile;
        assert_eq!(tensor["cosine"].as_f64().map(|c| c as f32), tile.cosine);
        assert_eq!(tensor["sqnr_db"].as_f64().map(|c| c as f32), tile.sqnr_db);
        assert_eq!(
            tensor["bits_per_weight"].as_f64().map(|c| c as f32),
            tile.bits_per_weight
        );
    }
    // The errors measured by the run equal those that verify measures on the stored weights.
    let verified: Value = serde_json::from_str(&arrowquant_ok([
        "verify",
        &output,
        "--against",
        &input,
        "--json",
    ]))
    .unwrap();
    for check in verified["tensors"].as_array().unwrap() {
        let tensors = report["tensors"].as_array().unwrap();
        let tensor = tensors.iter().find(|t| t["name"] == check["name"]).unwrap();
        assert_eq!(check["cosine"], tensor["cosine"]);
    }
}

#[test]
fn a_report_is_a_page_too() {
    let folder = small_model();
    let path = |name: &str| text(&folder.path().join(name));
    let (input, output) = (path("model.safetensors"), path("m.parquet"));
    let (page, data) = (path("r.HTML"), path("r.json"));
    arrowquant_ok([
        "quantize", &input, &output, "--report", &page, "--report", &data, "--quiet",
    ]);
    let read = |path: &str| std::fs::read_to_string(path).unwrap();
    let page = read(&page);
    assert!(page.starts_with("<!doctype html>") && page.ends_with("</html>\n"));
    let (_, held) = page.split_once("type=\"application/json\">").unwrap();
    let (held, _) = held.split_once("</script>").unwrap();
    let [held, report]: [Value; 2] =
        [held, &read(&data)].map(|text| serde_json::from_str(text).unwrap());
    assert!(held["tensors"][0]["name"].is_string());
    assert_eq!(held, report);
}

#[test]
fn verify_compares_with_the_original() {
    let folder = small_model();
    let input = text(&folder.path().join("model.safetensors"));
    let output = text(&folder.path().join("m.parquet"));
    arrowquant_ok(["quantize", &input, &output, "--bits", "2", "--quiet"]);
    fails(
        &[
            "verify",
            &output,
            "--against",
            &input,
            "--min-cosine",
            "0.9999",
        ],
        1,
        &[],
    );
    let failed = arrowquant([
        "verify",
        &output,
        "--against",
        &input,
        "--min-cosine",
        "0.9999",
    ]);
    let printed = String::from_utf8(failed.stdout).unwrap();
    assert!(
        printed.contains("FAILED conv.weight: cosine 0.9"),
        "{printed}"
    );

    let other = text(&folder.path().join("other.safetensors"));
    let check = |tensors: &[RawTensor]| {
        std::fs::write(&other, safetensors(tensors)).unwrap();
        let output = arrowquant(["verify", &output, "--against", &other]);
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stdout).unwrap()
    };
    let printed = check(&[
        f32_tensor("conv.weight", &[6, 5, 3, 3], &noise(99, 270)),
        bf16_tensor("blocks.0.attn.bias", &[40], &noise(98, 40)),
        f32_tensor("blocks.0.mlp.weight", &[33, 17], &noise(3, 17 * 33)),
        f32_tensor("more.weight", &[2], &[0.0; 2]),
    ]);
    for part in [
        "FAILED conv.weight: cosine to the original is",
        "is this the original?",
        "FAILED blocks.0.attn.bias: kept, but not equal to the original",
        "FAILED blocks.0.mlp.weight: the original is f32 [33, 17], not f32 [17, 33]",
        "FAILED position_ids: the original has no such tensor",
        "FAILED more.weight: the file lacks this tensor",
        "8 tensors failed",
    ] {
        assert!(printed.contains(part), "{part:?} is not in {printed}");
    }
}

#[test]
fn verify_names_the_damaged_tensor() {
    let folder = small_model();
    let output = damaged(folder.path());
    let verified = arrowquant(["verify", &output]);
    assert_eq!(verified.status.code(), Some(1));
    let printed = String::from_utf8(verified.stdout).unwrap();
    let expected = "FAILED conv.weight: checksum of tile 0 does not match, the data is damaged\n1 of 7 tensors failed\n";
    assert_eq!(printed, expected);
}

#[test]
fn dequantize_gives_the_dtype_asked_for() {
    let folder = small_model();
    let output = text(&folder.path().join("m.parquet"));
    arrowquant_ok(["quantize", &text(folder.path()), &output, "--quiet"]);
    let back = text(&folder.path().join("back.safetensors"));
    for (flags, floats) in [
        (&["--dtype", "bf16"][..], &["bf16"][..]),
        (&["--dtype", "f32"], &["f32"]),
        (&[], &["bf16", "f32"]),
    ] {
        arrowquant_ok(
            ["dequantize", &output, &back]
                .into_iter()
                .chain(flags.iter().copied()),
        );
        let source = arrowquant::source::open(back.as_ref()).unwrap();
        for tensor in source.tensors() {
            match tensor.name.as_str() {
                "position_ids" => assert_eq!(tensor.dtype.name(), "i64"),
                _ => assert!(floats.contains(&tensor.dtype.name()), "{tensor:?}"),
            }
        }
    }
}

#[test]
fn no_progress_bar_is_drawn_into_a_pipe() {
    let folder = small_model();
    let output = text(&folder.path().join("m.parquet"));
    let done = arrowquant(["quantize", &text(folder.path()), &output]);
    assert!(done.status.success());
    assert_eq!(stderr(&done), "");
    assert!(!String::from_utf8(done.stdout).unwrap().contains('\u{1b}'));
}
