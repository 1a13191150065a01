//! `bulkhead metrics`: figures of all containers, for programs that collect such.

use std::fmt::Write;

use clap::Args;
use runtime::container::{Container, State};
use runtime::networks::{self, Refused, Traffic};

use crate::output::line;

/// Options of `metrics`: none.
#[derive(Debug, Args)]
pub struct Arguments {}

/// Prints them.
pub fn run(_: &Arguments) -> anyhow::Result<u8> {
    let list = super::containers().list()?;
    super::warn_of(&list.damaged);
    let mut found = Vec::new();
    for (container, state) in &list.sound {
        match Figures::of(container, state) {
            Ok(figures) => found.push(figures),
            // It may have gone meanwhile; the others are still there.
            Err(error) => crate::errors::warn(&crate::errors::chain(&error)),
        }
    }
    line(text(&found).trim_end())?;
    Ok(0)
}

/// Of one container.
struct Figures {
    id: String,
    name: String,
    image: String,
    running: bool,
    /// Nothing, without a network.
    refused: Option<Refused>,
    traffic: Option<Traffic>,
}

impl Figures {
    fn of(container: &Container, state: &State) -> anyhow::Result<Figures> {
        let (dirs, config) = (container.dirs(), &container.config);
        let networked = config.network.is_some();
        Ok(Figures {
            id: config.id.clone(),
            name: config.name.clone(),
            image: config.image.clone(),
            running: matches!(state, State::Running { .. } | State::Paused { .. }),
            refused: networked.then(|| networks::refused(dirs, &config.id)).transpose()?,
            traffic: networks::traffic(dirs, &config.id).filter(|_| networked),
        })
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
    let flows = |one: &Figures| {
        let flows = |traffic: &Traffic| [("received", traffic.received), ("sent", traffic.sent)];
        one.traffic.as_ref().map(flows).into_iter().flatten().collect::<Vec<_>>()
    };
    let frames = |one: &Figures| {
        let sample =
            |(way, flow): (&str, networks::Flow)| (labels(one, &[("direction", way)]), flow.frames);
        flows(one).into_iter().map(sample).collect()
    };
    let help = "Frames of a running container that passed.";
    family("network_frames_total", "counter", help, each(&frames));
    let bytes = |one: &Figures| {
        let sample =
            |(way, flow): (&str, networks::Flow)| (labels(one, &[("direction", way)]), flow.bytes);
        flows(one).into_iter().map(sample).collect()
    };
    let help = "Bytes of a running container's frames that passed.";
    family("network_bytes_total", "counter", help, each(&bytes));
    let refused = |one: &Figures| {
        let known = one.refused.as_ref().map(reasons).into_iter().flatten();
        known.map(|(why, count)| (labels(one, &[("reason", why)]), count)).collect()
    };
    let help = "Frames of a container that were refused, as inspect's Refused has them.";
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
        let flow = networks::Flow { frames: 2, bytes: 99 };
        let one = Figures {
            id: "ab".into(),
            name: "a\"\\\n\u{7f}".into(),
            image: "small".into(),
            running: true,
            refused: Some(Refused { egress: 3, guard: Some(4), ..Refused::default() }),
            traffic: Some(Traffic { received: flow, sent: networks::Flow::default() }),
        };
        let (image, refused, traffic) = ("small".into(), None, None);
        let other =
            Figures { id: "cd".into(), name: "c".into(), image, running: false, refused, traffic };
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
