//! The figures as SVG: whole commands and first lines as bars, bulkhead's start
//! as a row of stages.

use std::fmt::Write;

use crate::start::{Report, Samples};

const WIDTH: f64 = 900.0;
const LEFT: f64 = 210.0;
const RIGHT: f64 = 90.0;
const BAR: f64 = 22.0;
const GAP: f64 = 10.0;
const COLOURS: [&str; 14] = [
    "#1f4e79", "#2e75b6", "#9dc3e6", "#c55a11", "#f4b183", "#548235", "#a9d18e", "#7f6000",
    "#ffd966", "#7b7b7b", "#5b9bd5", "#833c0b", "#385723", "#bf9000",
];

/// An SVG document of `report`.
pub fn draw(report: &Report) -> String {
    let mut body = String::new();
    let mut top = 30.0;
    title(&mut body, &mut top, "Whole command, median (bar) and all samples (dots), ms");
    bars(&mut body, &mut top, report.commands.iter());
    title(&mut body, &mut top, "Verbs of the OCI runtimes, ms");
    bars(&mut body, &mut top, report.verbs.iter());
    let ratio = report.first_line_ratio;
    let heading = format!(
        "VMM start to the first user-space line, same kernel, {} MiB; ratio to qemu -M microvm: {ratio:.2}",
        report.guest_mib
    );
    title(&mut body, &mut top, &heading);
    bars(&mut body, &mut top, report.first_line.iter());
    title(&mut body, &mut top, "Stages of a bulkhead start, medians, ms");
    stages(&mut body, &mut top, &report.stages);
    let memory = &report.memory;
    let heading = format!(
        "Memory of one idle container (PSS): guest {:.1} MiB, VMM's own {:.1} MiB, supervisor {:.1} MiB",
        memory.guest_kib as f64 / 1024.0,
        memory.vmm_own_kib as f64 / 1024.0,
        memory.supervisor_kib as f64 / 1024.0
    );
    title(&mut body, &mut top, &heading);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {top}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{body}</svg>"
    )
}

fn text(body: &mut String, x: f64, y: f64, words: &str, more: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(body, "<text x=\"{x:.1}\" y=\"{y:.1}\" {more}>{words}</text>");
}

fn title(body: &mut String, top: &mut f64, words: &str) {
    text(body, 10.0, *top, words, "font-weight=\"bold\"");
    *top += 16.0;
}

fn rectangle(body: &mut String, x: f64, y: f64, width: f64, colour: &str) {
    let width = width.max(0.5);
    let _ = writeln!(
        body,
        "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{BAR}\" fill=\"{colour}\"/>"
    );
}

fn bars<'a>(
    body: &mut String,
    top: &mut f64,
    rows: impl Iterator<Item = (&'a String, &'a Samples)> + Clone,
) {
    let longest = rows.clone().flat_map(|(_, samples)| &samples.all).fold(1.0f64, |a, b| a.max(*b));
    let scale = (WIDTH - LEFT - RIGHT) / longest;
    for (index, (name, samples)) in rows.enumerate() {
        text(body, LEFT - 8.0, *top + 16.0, name, "text-anchor=\"end\"");
        rectangle(body, LEFT, *top, samples.median * scale, COLOURS[index % COLOURS.len()]);
        for sample in &samples.all {
            let (x, y) = (LEFT + sample * scale, *top + BAR / 2.0);
            let _ = writeln!(body, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2\" fill=\"black\"/>");
        }
        let x = LEFT + longest * scale + 8.0;
        text(body, x, *top + 16.0, &format!("{:.1}", samples.median), "");
        *top += BAR + GAP;
    }
    *top += 20.0;
}

fn stages(body: &mut String, top: &mut f64, stages: &[(String, Samples)]) {
    let total: f64 = stages.iter().map(|(_, samples)| samples.median.max(0.0)).sum();
    let scale = (WIDTH - 20.0) / total.max(1.0);
    let mut x = 10.0;
    for (index, (_, samples)) in stages.iter().enumerate() {
        let width = samples.median.max(0.0) * scale;
        rectangle(body, x, *top, width, COLOURS[index % COLOURS.len()]);
        x += width;
    }
    *top += BAR + GAP;
    for (index, (name, samples)) in stages.iter().enumerate() {
        let (x, y) = (10.0 + (index % 3) as f64 * 290.0, *top + (index / 3) as f64 * 20.0);
        let colour = COLOURS[index % COLOURS.len()];
        let _ = writeln!(
            body,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"12\" height=\"12\" fill=\"{colour}\"/>"
        );
        text(body, x + 18.0, y + 11.0, &format!("{name}: {:.1}", samples.median), "");
    }
    *top += stages.len().div_ceil(3) as f64 * 20.0 + 24.0;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_break_the_document() {
        let mut report = Report::default();
        report.commands.insert("a <b> & c".into(), Samples { all: vec![1.0], median: 1.0 });
        let svg = draw(&report);
        assert!(svg.contains("a &lt;b> &amp; c") && svg.ends_with("</svg>"));
    }
}
