//! Choosing, case by case.
