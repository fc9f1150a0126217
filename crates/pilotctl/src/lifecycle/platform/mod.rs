//! What differs between operating systems in handling processes.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(not(target_os = "linux"))]
mod macos;

#[cfg(target_os = "linux")]
pub use linux::Process;
#[cfg(not(target_os = "linux"))]
pub use macos::Process;
