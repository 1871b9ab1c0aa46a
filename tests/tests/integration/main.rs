//! Whole clusters of real processes. One binary, so that it links once; one module for each area.

#![allow(clippy::unwrap_used)]

mod canary;
mod command_line;
mod dev;
mod documents;
mod hand_over;
mod main_job;
mod once;
mod pages;
mod power_cut;
mod stops;
