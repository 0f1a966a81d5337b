//! Throughput against latency, one curve a system, as an SVG picture.

use std::fmt::Write;

use crate::output::figure;

/// A named curve: points with a label each.
pub(super) struct Curve {
    pub(super) name: &'static str,
    pub(super) points: Vec<(f64, f64, String)>,
}

/// Axes and curves. Latency is logarithmic: it spans decades.
pub(super) struct Plot {
    pub(super) x: &'static str,
    pub(super) y: String,
    pub(super) curves: Vec<Curve>,
}

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 20.0;
const BOTTOM: f64 = 50.0;
/// Told apart also by who sees no red and green.
const COLOURS: [&str; 4] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7"];

/// Where values lie in the picture.
struct Scale {
    x_max: f64,
    y_low: f64,
    y_high: f64,
}

impl Scale {
    /// None without a point that can be shown.
    fn new(curves: &[Curve]) -> Option<Self> {
        let points = || curves.iter().flat_map(|curve| &curve.points);
        let x_max = points().map(|point| point.0).fold(0.0, f64::max);
        let low = points().map(|point| point.1).fold(f64::INFINITY, f64::min);
        let high = points().map(|point| point.1).fold(0.0, f64::max);
        if x_max <= 0.0 || low <= 0.0 || !high.is_finite() {
            return None;
        }
        Some(Self {
            x_max: x_max * 1.1,
            y_low: low.log10().floor(),
            y_high: (high.log10() + 0.01).ceil(),
        })
    }

    fn x(&self, value: f64) -> f64 {
        LEFT + value / self.x_max * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, value: f64) -> f64 {
        let part = (value.log10() - self.y_low) / (self.y_high - self.y_low);
        HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM)
    }
}

/// None if there is nothing to show.
pub(super) fn render(plot: &Plot) -> Option<String> {
    let scale = Scale::new(&plot.curves)?;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         width=\"{WIDTH}\" height=\"{HEIGHT}\" font-family=\"sans-serif\" font-size=\"11\">\n"
    );
    grid(&mut svg, plot, &scale);
    for (index, curve) in plot.curves.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        let corners: Vec<String> = curve
            .points
            .iter()
            .map(|(x, y, _)| format!("{:.1},{:.1}", scale.x(*x), scale.y(*y)))
            .collect();
        // Writing to a string does not fail.
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/>",
            corners.join(" ")
        );
        for (x, y, label) in &curve.points {
            let (x, y) = (scale.x(*x), scale.y(*y));
            let _ = writeln!(
                svg,
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" fill=\"{colour}\">{label}</text>",
                x + 5.0,
                y - 5.0
            );
        }
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"{colour}\" font-weight=\"bold\">{}</text>",
            LEFT + 10.0,
            TOP + 15.0 * (f64::from(u8::try_from(index).unwrap_or(u8::MAX)) + 1.0),
            curve.name
        );
    }
    svg.push_str("</svg>\n");
    Some(svg)
}

fn grid(svg: &mut String, plot: &Plot, scale: &Scale) {
    let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    let mut decade = scale.y_low;
    while decade <= scale.y_high {
        let value = 10_f64.powf(decade);
        let y = scale.y(value);
        let _ = writeln!(
            svg,
            "<line x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{right}\" y2=\"{y:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 6.0,
            y + 4.0,
            figure(value)
        );
        decade += 1.0;
    }
    for part in 0..=5 {
        let value = scale.x_max * f64::from(part) / 5.0;
        let x = scale.x(value);
        let _ = writeln!(
            svg,
            "<line x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{bottom}\" stroke=\"#ddd\"/>\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            bottom + 15.0,
            figure(value)
        );
    }
    let _ = writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\
         <text transform=\"translate(14 {:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
        f64::midpoint(LEFT, right),
        bottom + 35.0,
        plot.x,
        f64::midpoint(TOP, bottom),
        plot.y
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot(points: Vec<(f64, f64, String)>) -> Plot {
        let name = "ringback";
        Plot {
            x: "MB/s",
            y: "p99 ms".into(),
            curves: vec![Curve { name, points }],
        }
    }

    #[test]
    fn more_is_further_right_and_later_is_higher() {
        let curves = plot(vec![(100.0, 0.5, "1".into()), (400.0, 20.0, "8".into())]).curves;
        let scale = Scale::new(&curves).unwrap();
        assert_eq!((scale.y_low, scale.y_high), (-1.0, 2.0));
        assert!(scale.x(400.0) > scale.x(100.0));
        // Pictures count from the top.
        assert!(scale.y(20.0) < scale.y(0.5));
        assert!((TOP..=HEIGHT - BOTTOM).contains(&scale.y(20.0)));
    }

    #[test]
    fn each_point_is_there_with_its_label() {
        let svg = render(&plot(vec![(1.0, 1.0, "16".into())])).unwrap();
        assert_eq!(svg.matches("<circle").count(), 1);
        assert!(svg.contains(">16</text>"));
        assert_eq!(render(&plot(Vec::new())), None);
    }
}
