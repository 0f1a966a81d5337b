//! Several programs doing the same in turn, and how they compare.
//!
//! Machines drift, and others use them. So a round has everybody once, each
//! round begins with somebody else, and what counts are the ratios inside the
//! rounds.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::figures::Spread;
use crate::load::{Load, Outcome, Program};

/// Something done around a run that does not count.
pub(crate) type Aside<'a> = Box<dyn Fn() -> Result<(), String> + 'a>;

/// A program with its file.
pub(crate) struct Entrant<'a> {
    pub(crate) name: &'static str,
    pub(crate) program: Box<dyn Program + 'a>,
    pub(crate) file: PathBuf,
    pub(crate) load: Load,
    /// The comparison means nothing without it.
    pub(crate) required: bool,
    pub(crate) before: Option<Aside<'a>>,
    pub(crate) after: Option<Aside<'a>>,
}

/// Who is divided by whom.
pub(crate) struct Pair {
    pub(crate) of: &'static str,
    pub(crate) by: &'static str,
    /// What the ratio of the speeds should be at least.
    pub(crate) goal: Option<f64>,
}

/// What came of one comparison.
pub(crate) struct Comparison {
    title: String,
    len: usize,
    series: Vec<Series>,
    ratios: Vec<Ratio>,
}

struct Series {
    name: &'static str,
    outcomes: Vec<Outcome>,
    failure: Option<String>,
}

struct Ratio {
    pair: Pair,
    speed: Spread,
    /// Processor time a request.
    cpu: Spread,
}

impl Entrant<'_> {
    fn run(&self) -> Result<Outcome, String> {
        if let Some(before) = &self.before {
            before()?;
        }
        let outcome = self.program.run(&self.file, &self.load)?;
        if let Some(after) = &self.after {
            after()?;
        }
        Ok(outcome)
    }
}

/// Runs everybody once uncounted, then in `rounds` rounds.
///
/// # Errors
///
/// If a required entrant fails. Another one is left out from there on.
pub(crate) fn compete(
    title: String,
    entrants: &[Entrant<'_>],
    pairs: Vec<Pair>,
    rounds: usize,
) -> Result<Comparison, String> {
    let mut series: Vec<Series> = entrants
        .iter()
        .map(|entrant| Series {
            name: entrant.name,
            outcomes: Vec::new(),
            failure: None,
        })
        .collect();
    for round in 0..=rounds {
        for place in 0..entrants.len() {
            let index = (place + round) % entrants.len();
            let (entrant, series) = (&entrants[index], &mut series[index]);
            if series.failure.is_some() {
                continue;
            }
            match entrant.run() {
                Ok(outcome) if round > 0 => series.outcomes.push(outcome),
                Ok(_) => {}
                Err(error) if entrant.required => return Err(format!("{}: {error}", entrant.name)),
                Err(error) => series.failure = Some(error),
            }
        }
    }
    let ratios = pairs
        .into_iter()
        .filter_map(|pair| ratio(&series, pair))
        .collect();
    Ok(Comparison {
        title,
        len: entrants.first().map_or(0, |entrant| entrant.load.len),
        series,
        ratios,
    })
}

/// None if one of the two did not come through.
fn ratio(series: &[Series], pair: Pair) -> Option<Ratio> {
    let find = |name| {
        series
            .iter()
            .find(|series| series.name == name && series.failure.is_none())
    };
    let (of, by) = (find(pair.of)?, find(pair.by)?);
    let ratios = |figure: fn(&Outcome) -> f64| {
        let pairs = of.outcomes.iter().zip(&by.outcomes);
        Spread::new(pairs.map(|(of, by)| figure(of) / figure(by)))
    };
    Some(Ratio {
        pair,
        speed: ratios(Outcome::rate),
        cpu: ratios(Outcome::cpu_micros),
    })
}

impl Series {
    fn figures(&self, figure: fn(&Outcome) -> f64) -> Spread {
        Spread::new(self.outcomes.iter().map(figure))
    }
}

impl Comparison {
    /// A table for people.
    pub(crate) fn print(&self) {
        println!("{}", self.title);
        let (rate, cpu) = ("requests/s", "CPU us/request");
        println!("  {:<32} {rate:^32}  {cpu:^26}", "");
        let columns = |values: Spread, width, digits: usize| {
            let Spread { low, middle, high } = values;
            format!("{low:>width$.digits$} {middle:>width$.digits$} {high:>width$.digits$}")
        };
        for series in &self.series {
            if let Some(failure) = &series.failure {
                println!("  {:<32} failed: {failure}", series.name);
                continue;
            }
            let rate = columns(series.figures(Outcome::rate), 10, 0);
            let cpu = columns(series.figures(Outcome::cpu_micros), 8, 2);
            println!("  {:<32} {rate}  {cpu}", series.name);
        }
        for ratio in &self.ratios {
            let name = format!("{} / {}", ratio.pair.of, ratio.pair.by);
            let (speed, cpu) = (columns(ratio.speed, 10, 3), columns(ratio.cpu, 8, 3));
            let goal = match ratio.pair.goal {
                Some(goal) if ratio.speed.middle >= goal => format!("  goal {goal}: met"),
                Some(goal) => format!("  goal {goal}: missed"),
                None => String::new(),
            };
            println!("  {name:<32} {speed}  {cpu}{goal}");
        }
        println!();
    }

    pub(crate) fn to_json(&self) -> Value {
        let programs: Vec<Value> = self.series.iter().map(Series::to_json).collect();
        let ratios: Vec<Value> = self.ratios.iter().map(Ratio::to_json).collect();
        json!({
            "title": self.title,
            "request_bytes": self.len,
            "programs": programs,
            "ratios": ratios,
        })
    }
}

impl Series {
    fn to_json(&self) -> Value {
        if let Some(failure) = &self.failure {
            return json!({ "name": self.name, "failure": failure });
        }
        let runs = self.outcomes.iter().map(|run| {
            json!({
                "requests": run.requests,
                "seconds": run.seconds,
                "cpu_seconds": run.cpu_seconds,
            })
        });
        json!({
            "name": self.name,
            "requests_per_second": self.figures(Outcome::rate).to_json(),
            "cpu_microseconds_per_request": self.figures(Outcome::cpu_micros).to_json(),
            "runs": runs.collect::<Vec<_>>(),
        })
    }
}

impl Ratio {
    fn to_json(&self) -> Value {
        json!({
            "of": self.pair.of,
            "by": self.pair.by,
            "speed": self.speed.to_json(),
            "cpu": self.cpu.to_json(),
            "goal": self.pair.goal,
        })
    }
}
