//! Plugins that write down what they are told.

use std::os::unix::fs::PermissionsExt;

use super::*;

/// Notes its environment and input, and answers with its own name.
const PLUGIN: &str = r#"#!/bin/sh
input=$(cat)
echo "${0##*/} $CNI_COMMAND $CNI_CONTAINERID $CNI_NETNS $CNI_IFNAME $input" >> "${0%/*}/notes"
case ${0##*/} in
refuses) echo '{"cniVersion":"1.0.0","code":11,"msg":"no","details":"today"}'; exit 1 ;;
dies) echo oops; exit 7 ;;
babbles) echo '{' ;;
*) echo "{\"cniVersion\":\"1.0.0\",\"interfaces\":[{\"name\":\"${0##*/}\"}]}" ;;
esac
"#;

struct Home {
    dir: tempfile::TempDir,
    path: PluginPath,
    list: NetworkList,
    settings: Map<String, Value>,
    log: File,
}

impl Home {
    fn new(kinds: &[&str], settings: Value) -> Home {
        let dir = tempfile::tempdir().unwrap();
        for kind in ["first", "second", "portmap", "refuses", "dies", "babbles"] {
            let path = dir.path().join(kind);
            std::fs::write(&path, PLUGIN).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        let plugins: Vec<_> = kinds
            .iter()
            .map(|kind| json!({ "type": kind, "capabilities": { "portMappings": true } }))
            .collect();
        let list = json!({ "cniVersion": "1.0.0", "name": "net", "plugins": plugins });
        Home {
            path: PluginPath::of(dir.path()),
            dir,
            list: serde_json::from_value(list).unwrap(),
            settings: settings.as_object().unwrap().clone(),
            log: tempfile::tempfile().unwrap(),
        }
    }

    fn client(&self) -> Client<'_> {
        let Home { list, path, settings, log, .. } = self;
        Client { list, path, container: "c1", interface: "eth0", settings, log }
    }

    fn notes(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.dir.path().join("notes")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

#[test]
fn results_are_chained_and_taken_back_in_reverse() {
    let home = Home::new(&["first", "portmap", "second"], json!({ "portMappings": [1], "x": 2 }));
    let mut noted = Vec::new();
    let note = |result: &Value| {
        noted.push(result["interfaces"][0]["name"].clone());
        Ok::<_, CniError>(())
    };
    let result = home.client().add(Path::new("/proc/1/fd/9"), note).unwrap();
    assert_eq!(result["interfaces"][0]["name"], "second");
    assert_eq!(noted, ["first", "portmap", "second"], "known, should we be killed meanwhile");
    home.client().del(None, Some(&result)).unwrap();
    home.client().check(Path::new("/n"), &result).unwrap();
    let notes = home.notes();
    let starts: Vec<_> = notes.iter().map(|note| note.split(" {").next().unwrap()).collect();
    assert_eq!(
        starts[..6],
        [
            "first ADD c1 /proc/1/fd/9 eth0",
            "portmap ADD c1 /proc/1/fd/9 eth0",
            "second ADD c1 /proc/1/fd/9 eth0",
            "second DEL c1  eth0",
            "portmap DEL c1  eth0",
            "first DEL c1  eth0",
        ]
    );
    let input =
        |note: &str| -> Value { serde_json::from_str(&note[note.find('{').unwrap()..]).unwrap() };
    let (first, second) = (input(&notes[0]), input(&notes[1]));
    assert_eq!(first["prevResult"], Value::Null);
    assert_eq!((&first["name"], &first["cniVersion"]), (&json!("net"), &json!("1.0.0")));
    assert_eq!(first["runtimeConfig"], json!({ "portMappings": [1] }));
    assert_eq!(first["capabilities"], Value::Null);
    assert_eq!(second["prevResult"]["interfaces"][0]["name"], "first");
    assert_eq!(input(&notes[5])["prevResult"], result);
}

#[test]
fn portmap_is_spared_without_ports() {
    let home = Home::new(&["first", "portmap"], json!({}));
    home.client().add(Path::new("/n"), |_| Ok::<_, CniError>(())).unwrap();
    assert_eq!(home.notes().len(), 1);
}

#[test]
fn errors_name_plugin_code_and_words() {
    let said = |kind: &str| {
        let home = Home::new(&[kind, "second"], json!({}));
        let error = home.client().add(Path::new("/n"), |_| Ok::<_, CniError>(())).unwrap_err();
        assert!(home.notes().len() < 2, "the next one must not run");
        crate::container::chain(&error)
    };
    assert_eq!(
        said("refuses"),
        "CNI plugin refuses refused ADD: no: today (code 11: try again later)"
    );
    assert!(said("dies").contains("plugin dies failed at ADD (exit status: 7): oops"));
    assert!(said("babbles").contains("babbles gave a result that cannot be understood"));
    let missing = said("absent");
    assert!(missing.contains("\"absent\"") && missing.contains("containernetworking-plugins"));
}

#[test]
fn all_are_asked_to_take_back_what_one_refuses() {
    let home = Home::new(&["first", "refuses", "second"], json!({}));
    let error = home.client().del(None, None).unwrap_err();
    assert!(error.to_string().contains("refused DEL"));
    assert_eq!(home.notes().len(), 3);
}
