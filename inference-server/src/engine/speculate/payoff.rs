//! Whether guesses pay: they cost rows, and a second model's time. What these cost beside a step is the machine's and the
//! models'.
//!
//! A step's time is taken as `fixed + row × rows`, fitted to the last steps that only decoded. With `n` sequences a step
//! gives `n` tokens; a guess that took `d` to make and is right with probability `p` is worth it if
//! `p × step(n) > n × (row + d)`. While too little is known, guesses are tried; after a while without any, the fit has
//! forgotten them, and they are tried again.

/// What remains of the past after a step, or after a sequence's guesses.
const KEPT: f64 = 0.99;
/// Steps and guesses below which nothing is known.
const KNOWN: f64 = 16.0;
/// Steps whose rows vary by less than this share of their mean say nothing of what a row costs.
const SPREAD: f64 = 0.1;
/// A step counts at most so many times as long as the mean: others may have had the processor.
const LONGEST: f64 = 1.5;

/// Sums over the past, the recent one weighing more.
#[derive(Debug, Default)]
pub(crate) struct Payoff {
    steps: f64,
    rows: f64,
    seconds: f64,
    rows_squared: f64,
    rows_seconds: f64,
    guessed: f64,
    right: f64,
    drafting: f64,
}

impl Payoff {
    /// A step that only decoded.
    pub fn step(&mut self, rows: usize, seconds: f64) {
        let rows = rows as f64;
        let seconds = if self.steps < KNOWN { seconds } else { seconds.min(LONGEST * self.seconds / self.steps) };
        for (sum, value) in [
            (&mut self.steps, 1.0),
            (&mut self.rows, rows),
            (&mut self.seconds, seconds),
            (&mut self.rows_squared, rows * rows),
            (&mut self.rows_seconds, rows * seconds),
        ] {
            *sum = KEPT * *sum + value;
        }
    }

    /// Making the next guesses, of all sequences, took so long.
    pub fn drafted(&mut self, seconds: f64) {
        self.drafting += seconds;
    }

    /// So many of a sequence's guesses were right.
    pub fn learn(&mut self, guessed: usize, right: usize) {
        self.guessed = KEPT * self.guessed + guessed as f64;
        self.right = KEPT * self.right + right as f64;
        self.drafting *= KEPT;
    }

    /// Whether to guess while so many sequences run.
    pub fn is_worth(&self, running: usize) -> bool {
        if self.steps < KNOWN || self.guessed < KNOWN {
            return true;
        }
        let (rows, seconds) = (self.rows / self.steps, self.seconds / self.steps);
        let variance = self.rows_squared / self.steps - rows * rows;
        if variance < (SPREAD * rows).powi(2) {
            return true;
        }
        let row = ((self.rows_seconds / self.steps - rows * seconds) / variance).max(0.0);
        let n = running.max(1) as f64;
        let step = seconds + row * (n - rows);
        self.right * step > n * (row * self.guessed + self.drafting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Steps of `running` sequences on a machine of this cost (`guess`: of making one), guessed where it pays; how many of
    /// the last 1,000 were.
    fn guessed_steps(fixed: f64, row: f64, guess: f64, running: usize, right_of_four: usize) -> usize {
        let mut payoff = Payoff::default();
        let step = |number: usize| {
            let guesses = payoff.is_worth(running);
            let rows = running + if guesses { 1 + number % 4 } else { 0 };
            let interrupted = if number % 100 == 99 { 1.0 } else { 0.0 };
            payoff.step(rows, fixed + row * rows as f64 + interrupted);
            if guesses {
                payoff.drafted(4.0 * guess);
                payoff.learn(4, right_of_four);
            }
            guesses
        };
        (0..3_000).map(step).skip(2_000).filter(|guesses| *guesses).count()
    }

    #[test]
    fn guesses_are_made_where_rows_cost_little_beside_a_step() {
        assert_eq!(guessed_steps(10e-3, 0.1e-3, 0.0, 1, 1), 1_000);
        assert_eq!(guessed_steps(20e-3, 2.5e-3, 0.0, 8, 3), 1_000);
        assert_eq!(guessed_steps(10e-3, 0.1e-3, 1e-3, 1, 1), 1_000, "a guess is made in less than it gives");
    }

    #[test]
    fn and_not_where_a_row_costs_what_it_gives_or_nothing_is_right_but_for_a_try_now_and_then() {
        for (fixed, row, guess, running, right) in [
            (0.2e-3, 0.2e-3, 0.0, 8, 3),
            (0.2e-3, 0.2e-3, 0.0, 1, 1),
            (10e-3, 0.5e-3, 0.0, 4, 0),
            (10e-3, 0.1e-3, 4e-3, 1, 1),
        ] {
            let guessed = guessed_steps(fixed, row, guess, running, right);
            assert!((1..300).contains(&guessed), "{guessed} for {fixed} {row} {guess} {running} {right}");
        }
    }

    #[test]
    fn who_knows_nothing_guesses() {
        assert!(Payoff::default().is_worth(256));
    }
}
