//! End-to-end cases, one module per feature. Both sides of a case, what is run
//! and what is expected, stand together.
