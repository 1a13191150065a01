//! `bulkhead metrics`: figures of all containers, for programs that collect such.
//!
//! What cannot be had hides nothing else: all that is known is printed, what is not is named on
//! standard error and counted (`bulkhead_scrape_errors`, as other exporters have it), and the
//! exit code is 1. Nothing at all is printed where there is no list of containers.

use std::fmt::Write;

use clap::Args;
use runtime::container::list::States;
use runtime::container::{Container, State, chain};
use runtime::networks::{self, All, Counted, Flow, NetworkError, Refused, Whose};

use crate::errors::say;
use crate::output::line;

/// Options of `metrics`: none.
#[derive(Debug, Args)]
pub struct Arguments {}

/// Prints them.
pub fn run(_: &Arguments) -> anyhow::Result<u8> {
    let containers = super::containers();
    let list = containers.list()?;
    super::tell_of_missing(&list);
    let States { known, uncertain, damaged } = list;
    let asked: Vec<_> = known.iter().filter(|one| has_network(one)).map(whose).collect();
    let All { each, rules } = networks::counted_all(containers.dirs(), &asked);
    let mut missing = uncertain.len() + damaged.len();
    if let Err(error) = rules {
        missing += 1;
        say(&chain(&error));
    }
    let mut each = each.into_iter();
    let mut found = Vec::with_capacity(known.len());
    for one in &known {
        let counted = if has_network(one) { each.next() } else { None };
        let (figures, complete) = Figures::of(one, counted);
        missing += usize::from(!complete);
        found.push(figures);
    }
    line(text(&found, missing).trim_end())?;
    Ok(u8::from(missing > 0))
}

fn has_network((container, _): &(Container, State)) -> bool {
    container.config.network.is_some()
}

fn whose((container, state): &(Container, State)) -> Whose<'_> {
    Whose { id: container.id(), ended: !state.needs_supervisor() }
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
    /// What is not known is left out: a counter must not fall. Whether all could be looked at.
    fn of(
        (container, state): &(Container, State),
        counted: Option<Result<Counted, NetworkError>>,
    ) -> (Figures, bool) {
        let config = &container.config;
        let (counted, complete) = match counted.transpose() {
            Ok(known) => (known.unwrap_or_default(), true),
            Err(error) => {
                say(&format!("container {}: {}", config.name, chain(&error)));
                (Counted::default(), false)
            }
        };
        let figures = Figures {
            id: config.id.clone(),
            name: config.name.clone(),
            image: config.image.clone(),
            running: matches!(state, State::Running { .. } | State::Paused { .. }),
            counted,
        };
        (figures, complete)
    }
}

/// All of them in Prometheus' text format, version 0.0.4, which is also what its node
/// exporter takes from files. `missing`: how much could not be looked at.
fn text(found: &[Figures], missing: usize) -> String {
    let mut text = String::new();
    let mut family = |name: &str, kind: &str, help: &str, samples: Vec<(String, u64)>| {
        // Cannot fail: the text is a String.
        let _ = writeln!(text, "# HELP bulkhead_{name} {help}\n# TYPE bulkhead_{name} {kind}");
        for (labels, value) in samples {
            let _ = writeln!(text, "bulkhead_{name}{labels} {value}");
        }
    };
    let labels = |one: &Figures, more: &[(&str, &str)]| {
        let own = [("id", one.id.as_str()), ("name", &one.name)];
        let all = own.iter().chain(more);
        let all = all.map(|(key, value)| format!("{key}=\"{}\"", escaped(value)));
        format!("{{{}}}", all.collect::<Vec<_>>().join(","))
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
    let help = "Containers, and tables of rules, of which figures are missing for an error.";
    family("scrape_errors", "gauge", help, vec![(String::new(), missing as u64)]);
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
        let all = text(&[one, other], 3);
        let name = r#"id="ab",name="a\"\\\n?""#;
        for line in [
            "# TYPE bulkhead_network_refused_frames_total counter",
            &format!("bulkhead_container_info{{{name},image=\"small\"}} 1"),
            "bulkhead_container_running{id=\"cd\",name=\"c\"} 0",
            &format!("bulkhead_network_bytes_total{{{name},direction=\"received\"}} 99"),
            &format!("bulkhead_network_refused_frames_total{{{name},reason=\"egress\"}} 3"),
            &format!("bulkhead_network_refused_frames_total{{{name},reason=\"guard\"}} 4"),
            "bulkhead_scrape_errors 3",
        ] {
            assert!(all.lines().any(|found| found == line), "{line} in {all}");
        }
        assert!(!all.contains("malformed"), "of which nothing is known");
        assert_eq!(all.lines().filter(|line| line.contains("\"cd\"")).count(), 2);
        assert_eq!(all.lines().filter(|line| line.starts_with("# HELP")).count(), 6);
    }
}
