//! x
pub mod cidr;
pub mod egress;
pub mod options;
