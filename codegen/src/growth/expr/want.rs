//! What a rule has to give.

use crate::ir::Type;
use lightc_dsl::ast::DType;
use lightc_dsl::model::Axis;
use lightc_dsl::size::Size;

/// The axes that a rule has to give; a size that is open follows from the rule.
#[derive(Clone, Debug)]
pub(super) struct Want {
    pub(super) dtype: DType,
    pub(super) axes: Vec<(String, Option<Size>)>,
}

impl Want {
    pub(super) fn size(&self, axis: &str) -> Option<&Size> {
        self.axes.iter().find(|(name, _)| name == axis).and_then(|(_, size)| size.as_ref())
    }

    pub(super) fn has(&self, axis: &str) -> bool {
        self.axes.iter().any(|(name, _)| name == axis)
    }

    pub(super) fn with(&self, axis: &str, size: Option<Size>) -> Want {
        let mut want = self.clone();
        for (name, known) in &mut want.axes {
            if name == axis {
                known.clone_from(&size);
            }
        }
        want
    }

    pub(super) fn without(&self, axis: &str) -> Want {
        let mut want = self.clone();
        want.axes.retain(|(name, _)| name != axis);
        want
    }

    pub(super) fn text(&self) -> String {
        let axes = self.axes.iter().map(|(name, size)| match size {
            Some(size) if *size != Size::symbol(name) => format!("{name}={size}"),
            _ => name.clone(),
        });
        format!("[{}]", axes.collect::<Vec<_>>().join(", "))
    }

    pub(super) fn ty(&self) -> Option<Type> {
        let axes = self
            .axes
            .iter()
            .map(|(name, size)| Some(Axis { name: name.clone(), size: size.clone()? }));
        Some(Type::new(self.dtype, axes.collect::<Option<_>>()?))
    }
}
