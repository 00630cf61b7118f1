//! Messages known to be poor: each test names what is wrong with it. One that is mended moves to
//! `errors.rs`.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod common;

use common::{assert_shown, check_errors};

macro_rules! bad_errors {
    ($($(#[$doc:meta])* $name:ident: $source:expr;)*) => {
        $($(#[$doc])* #[test] fn $name() { assert_shown(concat!("bad_errors__", stringify!($name)), &check_errors($source)); })*
    };
}

bad_errors! {
    /// Two arguments in the wrong order are two errors about axes; neither says that exchanging
    /// them would do.
    arguments_in_the_wrong_order: "block Inject(d) {
    forward(x[b, t, d], memory[b, d]) -> [b, t, d] {
        x + memory
    }
}

block A(d) {
    sub inject = Inject()

    forward(x[b, t, d], memory[b, d]) -> [b, t, d] {
        inject(memory, x)
    }
}";
    /// `sum(x, d)` is a common slip. That `over` is missing is only seen by comparing.
    over_that_is_missing: "block A(d) {
    forward(x[b, d]) -> [b] {
        sum(x, d)
    }
}";
    /// The place is right, but only the first of the calls that lead to it is shown, with the types
    /// of that call.
    block_that_is_wrong_for_two_calls: "block Rows(d) {
    forward(x[b, d]) -> [b] {
        sum(x, over t)
    }
}

block A(d) {
    sub first  = Rows()
    sub second = Rows()

    forward(x[b, d], y[b, d]) -> [b] {
        first(x) + second(y)
    }
}";
    /// Inside a block the size of an axis that the caller brings has the axis' own name, so that the
    /// message compares `t` with `t` and does not show the caller's sizes.
    size_that_has_two_meanings: "block Last(d) {
    forward(x[b, t, d]) -> [b, s, d] {
        axis s = t - 2
        slice(x, t[1 .. t] -> s)
    }
}

block A(d) {
    sub last = Last()

    forward(x[b, u, d]) -> [b, s, d] {
        axis t = u - 1
        axis s = u - 3
        last(slice(x, u[1 .. u] -> t))
    }
}";
}
