//! The client's text: statements, literals, syntax trees.

/// One statement's text.
#[derive(Clone, Debug)]
pub struct Text {
    /// As the client wrote it.
    pub source: String,
}
