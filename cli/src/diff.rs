//! What changed, as a unified diff.

use similar::TextDiff;

/// A unified diff between two texts; empty for equal ones.
pub(crate) fn unified(old_name: &str, new_name: &str, old: &str, new: &str) -> String {
    TextDiff::from_lines(old, new)
        .unified_diff()
        .context_radius(3)
        .header(old_name, new_name)
        .to_string()
}
