//! The CNI plugin `towpath`.

use std::{
    env,
    io::{self, Write},
    process::ExitCode,
};

use towpath_cni::Answer;

fn main() -> ExitCode {
    if env::args().nth(1).as_deref() == Some("--version") {
        println!("towpath {}", env!("CARGO_PKG_VERSION"));
        return ExitCode::SUCCESS;
    }
    let answer = towpath_cni::run(&|name| env::var(name).ok(), io::stdin());
    let (text, status) = match answer {
        Answer::Silent => return ExitCode::SUCCESS,
        Answer::Result(value) => (value, ExitCode::SUCCESS),
        Answer::Error(value) => (value, ExitCode::FAILURE),
    };
    // Not `println!`, which panics when the runtime has closed its end of the pipe.
    match writeln!(io::stdout(), "{text}") {
        Ok(()) => status,
        Err(_) => ExitCode::FAILURE,
    }
}
