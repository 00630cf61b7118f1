//! The learning rate as a pure function of the step and the group.
//!
//! Let `S` be the steps of the run and `W <= S` the warmup steps. The update
//! that turns step `s` into `s + 1` uses the base rate `r(s)`, `s = 0 .. S`:
//!
//! ```text
//! s < W:   r(s) = from + (peak - from) s / W
//! cosine:  r(s) = end + (peak - end) (1 + cos(pi p)) / 2,     p = (s - W) / max(1, S - W)
//! wsd:     H = round(stable_fraction (S - W)) steps at `peak`, then
//!          p = (s - W - H) / max(1, S - W - H), and
//!          cosine decay as above, or linear: r(s) = peak + (end - peak) p
//! ```
//!
//! `p` is clamped to [0, 1], so a step past `S` has `r = end`. A group's rate
//! is `lr_multiplier r(s)`. There is no state: resuming at step `s` calls the
//! same function.

use serde::{Deserialize, Serialize};

/// How a WSD schedule comes down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decay {
    /// Half a cosine.
    Cosine,
    /// A straight line.
    Linear,
}

/// The part of a schedule after its warmup.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Shape {
    /// Half a cosine from the peak to the end.
    Cosine,
    /// Warmup, stable, decay.
    Wsd {
        /// Share of the steps after warmup that stay at the peak.
        stable_fraction: f64,
        /// How the rest comes down.
        decay: Decay,
    },
}

/// A schedule. See the module documentation for its meaning.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// What follows the warmup.
    pub shape: Shape,
    /// `S`.
    pub n_steps: u64,
    /// `W`.
    pub n_warmup_steps: u64,
    /// Rate at step 0, where `W > 0`.
    pub warmup_from: f64,
    /// Rate after the warmup.
    pub peak: f64,
    /// Rate at the end.
    pub end: f64,
}

impl Schedule {
    /// The rate of the update from step `step` for a group of this multiplier.
    pub fn lr(&self, step: u64, lr_multiplier: f64) -> f64 {
        lr_multiplier * self.base(step)
    }

    fn base(&self, step: u64) -> f64 {
        if step < self.n_warmup_steps {
            let done = step as f64 / self.n_warmup_steps as f64;
            return self.warmup_from + (self.peak - self.warmup_from) * done;
        }
        let after = step - self.n_warmup_steps;
        let total = self.n_steps.saturating_sub(self.n_warmup_steps);
        match self.shape {
            Shape::Cosine => self.falling(Decay::Cosine, progress(after, total)),
            Shape::Wsd { stable_fraction, decay } => {
                let stable = (stable_fraction * total as f64).round() as u64;
                let falling = after.saturating_sub(stable);
                self.falling(decay, progress(falling, total.saturating_sub(stable)))
            }
        }
    }

    fn falling(&self, decay: Decay, progress: f64) -> f64 {
        match decay {
            Decay::Cosine => {
                let share = 0.5 * (1.0 + libm::cos(std::f64::consts::PI * progress));
                self.end + (self.peak - self.end) * share
            }
            Decay::Linear => self.peak + (self.end - self.peak) * progress,
        }
    }
}

fn progress(done: u64, total: u64) -> f64 {
    (done as f64 / total.max(1) as f64).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(shape: Shape) -> Schedule {
        Schedule { shape, n_steps: 100, n_warmup_steps: 10, warmup_from: 0.1, peak: 1.0, end: 0.2 }
    }

    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-12, "{found} is not {expected}");
    }

    #[test]
    fn cosine_has_the_values_of_its_definition() {
        let schedule = schedule(Shape::Cosine);
        close(schedule.lr(0, 1.0), 0.1);
        close(schedule.lr(5, 1.0), 0.55);
        close(schedule.lr(10, 1.0), 1.0);
        close(schedule.lr(55, 1.0), 0.6);
        close(schedule.lr(100, 1.0), 0.2);
        close(schedule.lr(1000, 1.0), 0.2);
        close(schedule.lr(55, 3.0), 1.8);
    }

    #[test]
    fn wsd_holds_and_then_comes_down() {
        for (decay, middle) in [(Decay::Cosine, 0.6), (Decay::Linear, 0.6)] {
            let schedule = schedule(Shape::Wsd { stable_fraction: 0.8, decay });
            for step in [10, 40, 81, 82] {
                close(schedule.lr(step, 1.0), 1.0);
            }
            assert!(schedule.lr(83, 1.0) < 1.0);
            close(schedule.lr(91, 1.0), middle);
            close(schedule.lr(100, 1.0), 0.2);
        }
    }

    #[test]
    fn the_reference_numbers_of_the_120b_stage() {
        let shape = Shape::Wsd { stable_fraction: 0.85, decay: Decay::Cosine };
        let schedule = Schedule {
            shape,
            n_steps: 3814,
            n_warmup_steps: 300,
            warmup_from: 1e-5,
            peak: 3.5e-5,
            end: 3.5e-6,
        };
        close(schedule.lr(300 + 2987, 1.0), 3.5e-5);
        assert!(schedule.lr(300 + 2988, 1.0) < 3.5e-5);
        close(schedule.lr(3814, 1.0), 3.5e-6);
    }

    #[test]
    fn degenerate_lengths_are_finite() {
        for n_warmup_steps in [0, 100] {
            for n_steps in [0, 1, 100] {
                for shape in
                    [Shape::Cosine, Shape::Wsd { stable_fraction: 1.0, decay: Decay::Linear }]
                {
                    let schedule = Schedule { n_steps, n_warmup_steps, ..schedule(shape) };
                    for step in 0..102 {
                        let lr = schedule.lr(step, 1.0);
                        assert!((0.1..=1.0).contains(&lr), "{schedule:?} {step} {lr}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_resumed_run_sees_the_same_rates() {
        let schedule = schedule(Shape::Cosine);
        let whole: Vec<f64> = (0..100).map(|step| schedule.lr(step, 1.0)).collect();
        let again = schedule;
        let resumed: Vec<f64> = (0..50).chain(50..100).map(|step| again.lr(step, 1.0)).collect();
        assert_eq!(whole, resumed);
    }
}
