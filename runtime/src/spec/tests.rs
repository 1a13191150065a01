use oci_spec::image::{ConfigBuilder, ImageConfigurationBuilder};

use super::*;

fn image(entrypoint: &[&str], cmd: &[&str], env: &[&str]) -> ImageConfiguration {
    let own = |words: &[&str]| words.iter().map(|word| word.to_string()).collect::<Vec<_>>();
    let config = ConfigBuilder::default()
        .entrypoint(own(entrypoint))
        .cmd(own(cmd))
        .env(own(env))
        .working_dir("/srv")
        .build()
        .unwrap();
    ImageConfigurationBuilder::default().config(config).build().unwrap()
}

fn root() -> ResolvedUser {
    ResolvedUser { uid: 0, gid: 0, additional_gids: vec![], home: "/root".into() }
}

fn options(args: &[&str]) -> SpecOptions {
    SpecOptions {
        hostname: "box".into(),
        process: ProcessOptions {
            args: args.iter().map(|word| word.to_string()).collect(),
            ..ProcessOptions::default()
        },
        ..SpecOptions::default()
    }
}

fn args(entrypoint: Option<&str>, words: &[&str]) -> Vec<String> {
    let mut options = options(words);
    options.process.entrypoint = entrypoint.map(String::from);
    let spec = build(&image(&["/entry"], &["cmd"], &[]), &options, &root()).unwrap().spec;
    serde_json::from_value(spec["process"]["args"].clone()).unwrap()
}

#[test]
fn entry_point_and_command_combine_as_in_docker() {
    assert_eq!(args(None, &[]), ["/entry", "cmd"]);
    assert_eq!(args(None, &["x", "y"]), ["/entry", "x", "y"]);
    assert_eq!(args(Some("/other"), &[]), ["/other"]);
    assert_eq!(args(Some("/other"), &["x"]), ["/other", "x"]);
    assert_eq!(args(Some(""), &["x"]), ["x"]);
    let none = build(&image(&[], &[], &[]), &options(&[]), &root());
    assert_eq!(none.unwrap_err(), SpecError::NoCommand);
}

#[test]
fn the_result_is_a_specification() {
    let mut options = options(&["true"]);
    options.process.tty = true;
    options.process.size = Some((24, 80));
    options.process.rlimits = vec!["nofile=5:6".parse().unwrap()];
    options.volumes = vec!["/h:/data:ro".parse().unwrap()];
    options.limits = Limits {
        memory: Some(Bytes(64 << 20)),
        cpus: Some("0.5".parse().unwrap()),
        pids: Some(50),
    };
    let user = ResolvedUser { uid: 33, additional_gids: vec![29], ..root() };
    let built = build(&image(&[], &[], &[]), &options, &user).unwrap();
    let spec: oci_spec::runtime::Spec = serde_json::from_value(built.spec.clone()).unwrap();
    let process = spec.process().as_ref().unwrap();
    assert_eq!(process.user().uid(), 33);
    assert_eq!(process.console_size().map(|size| (size.height(), size.width())), Some((24, 80)));
    assert_eq!(process.cwd().to_str(), Some("/srv"));
    assert_eq!(spec.mounts().as_ref().unwrap().len(), 8);
    let resources = spec.linux().as_ref().unwrap().resources().as_ref().unwrap();
    assert_eq!(resources.memory().unwrap().limit(), Some(64 << 20));
    assert_eq!(resources.cpu().as_ref().unwrap().quota(), Some(50_000));
    assert_eq!(built.sources["live/v0"], "live/v0");
    // Not root: nothing is held, all is in reach of set-uid programs.
    let capabilities = &built.spec["process"]["capabilities"];
    assert_eq!(capabilities["effective"].as_array().unwrap().len(), 0);
    assert_eq!(capabilities["bounding"].as_array().unwrap().len(), 14);
}

#[test]
fn the_environment_has_each_name_once() {
    let mut options = options(&["true"]);
    options.process.env = vec!["A=3".into(), "EMPTY=".into()];
    let image = image(&[], &[], &["PATH=/bin", "A=1", "nonsense", "B=2"]);
    let spec = build(&image, &options, &root()).unwrap().spec;
    let expected = ["PATH=/bin", "HOSTNAME=box", "HOME=/root", "A=3", "B=2", "EMPTY="];
    assert_eq!(spec["process"]["env"], json!(expected));
    options.process.env = vec!["=x".into()];
    assert!(matches!(build(&image, &options, &root()), Err(SpecError::Env(_))));
}

#[test]
fn a_further_process_inherits() {
    let mut options = options(&["true"]);
    options.process.env = vec!["A=1".into()];
    let base = build(&image(&[], &[], &[]), &options, &root()).unwrap().spec["process"].take();
    let wanted = ProcessOptions {
        args: vec!["sh".into()],
        env: vec!["A=2".into()],
        cwd: Some("/tmp".into()),
        tty: true,
        ..ProcessOptions::default()
    };
    let process = exec_process(&base, &wanted, None).unwrap();
    assert_eq!(process["args"], json!(["sh"]));
    assert_eq!((&process["cwd"], &process["terminal"]), (&json!("/tmp"), &json!(true)));
    let env = process["env"].as_array().unwrap();
    assert!(env.contains(&json!("A=2")) && env.contains(&json!("TERM=xterm")));
    let relative = ProcessOptions { cwd: Some("tmp".into()), ..wanted };
    assert_eq!(exec_process(&base, &relative, None), Err(SpecError::WorkDir("tmp".into())));
}
