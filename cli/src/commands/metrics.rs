//! `bulkhead metrics`: figures of all containers, for programs that collect such.

use std::fmt::Write;

use clap::Args;
use runtime::container::{Container, State};
use runtime::networks::{self, Counted, Flow, Refused};

use crate::output::line;

/// Options of `metrics`: none.
#[derive(Debug, Args)]
pub struct Arguments {}

/// Prints them.
pub fn run(_: &Arguments) -> anyhow::Result<u8> {
    let list = super::containers().list()?;
    super::warn_of(&list.damaged);
    let found: Vec<_> = list.sound.iter().map(|(one, state)| Figures::of(one, state)).collect();
    line(text(&found).trim_end())?;
    Ok(0)
}

/// Of one container.
struct Figures {
    id: String,
    name: String,
    image: String,
    running: bool,
    counted: Counted,
}

impl Figures {
    /// What is not known is left out: a counter must not fall.
    fn of(container: &Container, state: &State) -> Figures {
        let (dirs, config) = (container.dirs(), &container.config);
        let mut counted = Counted::default();
        if config.network.is_some() {
            match networks::counted(dirs, &config.id, !state.needs_supervisor()) {
                Ok(known) => counted = known,
                Err(error) => crate::errors::warn(&runtime::container::chain(&error)),
            }
        }
        Figures {
            id: config.id.clone(),
            name: config.name.clone(),
            image: config.image.clone(),
            running: matches!(state, State::Running { .. } | State::Paused { .. }),
            counted,
        }
    }
}

/// All of them in Prometheus' text format, version 0.0.4, which is also what its node
/// exporter takes from files.
fn text(found: &[Figures]) -> String {
    let mut text = String::new();
    let mut family = |name: &str, kind: &str, help: &str, samples: Vec<(String, u64)>| {
        // Cannot fail: the text is a String.
        let _ = writeln!(text, "# HELP bulkhead_{name} {help}\n# TYPE bulkhead_{name} {kind}");
        for (labels, value) in samples {
            let _ = writeln!(text, "bulkhead_{name}{{{labels}}} {value}");
        }
    };
    let labels = |one: &Figures, more: &[(&str, &str)]| {
        let own = [("id", one.id.as_str()), ("name", &one.name)];
        let all = own.iter().chain(more);
        all.map(|(key, value)| format!("{key}=\"{}\"", escaped(value)))
            .collect::<Vec<_>>()
            .join(",")
    };
    let each = |sample: &dyn Fn(&Figures) -> Vec<(String, u64)>| {
        found.iter().flat_map(sample).collect::<Vec<_>>()
    };

    let info = |one: &Figures| vec![(labels(one, &[("image", &one.image)]), 1)];
    family("container_info", "gauge", "A container and its image.", each(&info));
    let running = |one: &Figures| vec![(labels(one, &[]), u64::from(one.running))];
    family("container_running", "gauge", "Whether it runs, or is paused.", each(&running));
    let flows = |one: &Figures, of: fn(Flow) -> u64| {
        let traffic = one.counted.traffic.into_iter();
        let ways = traffic.flat_map(|it| [("received", it.received), ("sent", it.sent)]);
        ways.map(|(way, flow)| (labels(one, &[("direction", way)]), of(flow))).collect()
    };
    let frames = |one: &Figures| flows(one, |flow| flow.frames);
    let help = "Frames that reached a running container's machine or left it.";
    family("network_frames_total", "counter", help, each(&frames));
    let bytes = |one: &Figures| flows(one, |flow| flow.bytes);
    let help = "Bytes of those frames.";
    family("network_bytes_total", "counter", help, each(&bytes));
    let refused = |one: &Figures| {
        let known = one.counted.refused.as_ref().map(reasons).into_iter().flatten();
        known.map(|(why, count)| (labels(one, &[("reason", why)]), count)).collect()
    };
    let help = "Frames that a container's machine sent, or wanted to, and that went nowhere.";
    family("network_refused_frames_total", "counter", help, each(&refused));
    text
}

/// What is known of them.
fn reasons(refused: &Refused) -> Vec<(&'static str, u64)> {
    let Refused { host, metadata, networks, egress, routers, guard, malformed } = *refused;
    let always = [
        ("host", host),
        ("metadata", metadata),
        ("networks", networks),
        ("egress", egress),
        ("routers", routers),
    ];
    let by_vmm = [("guard", guard), ("malformed", malformed)];
    let known = by_vmm.into_iter().filter_map(|(why, count)| Some((why, count?)));
    always.into_iter().chain(known).collect()
}

/// The value of a label.
fn escaped(value: &str) -> String {
    value.chars().fold(String::with_capacity(value.len()), |mut text, c| {
        match c {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            c if c.is_control() => text.push('?'),
            c => text.push(c),
        }
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_prometheus_own() {
        let received = Flow { frames: 2, bytes: 99 };
        let traffic = networks::Traffic { received, sent: Flow::default() };
        let refused = Refused { egress: 3, guard: Some(4), ..Refused::default() };
        let one = Figures {
            id: "ab".into(),
            name: "a\"\\\n\u{7f}".into(),
            image: "small".into(),
            running: true,
            counted: Counted { refused: Some(refused), traffic: Some(traffic) },
        };
        let (image, counted) = ("small".into(), Counted::default());
        let other = Figures { id: "cd".into(), name: "c".into(), image, running: false, counted };
        let all = text(&[one, other]);
        let name = r#"id="ab",name="a\"\\\n?""#;
        for line in [
            "# TYPE bulkhead_network_refused_frames_total counter",
            &format!("bulkhead_container_info{{{name},image=\"small\"}} 1"),
            "bulkhead_container_running{id=\"cd\",name=\"c\"} 0",
            &format!("bulkhead_network_bytes_total{{{name},direction=\"received\"}} 99"),
            &format!("bulkhead_network_refused_frames_total{{{name},reason=\"egress\"}} 3"),
            &format!("bulkhead_network_refused_frames_total{{{name},reason=\"guard\"}} 4"),
        ] {
            assert!(all.lines().any(|found| found == line), "{line} in {all}");
        }
        assert!(!all.contains("malformed"), "of which nothing is known");
        assert_eq!(all.lines().filter(|line| line.contains("\"cd\"")).count(), 2);
        assert_eq!(all.lines().filter(|line| line.starts_with("# HELP")).count(), 5);
    }
}
