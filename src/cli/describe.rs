//! What the command line says of itself: `completions`, `man` and `help`.

use std::io::{self, Write};
use std::iter;
use std::path::PathBuf;

use clap::{ArgMatches, Command, value_parser};
use clap_complete::Shell;
use clap_mangen::Man;

use super::options::{command, path, positional};

pub(super) fn commands() -> [Command; 3] {
    let shell = positional("SHELL", "The shell").required(true);
    let folder = positional(
        "DIR",
        "Write the pages of the program and of each command into this folder, instead of the first one to stdout",
    );
    let words = positional(
        "COMMAND",
        "The command, such as `token issue`; none: the whole program",
    );
    [
        command(
            "completions",
            "Print a script that completes this command line in a shell",
            vec![shell.value_parser(value_parser!(Shell))],
        ),
        command(
            "man",
            "Print the manual page, or write one for each command",
            vec![folder.value_parser(value_parser!(PathBuf))],
        ),
        command(
            "help",
            "Print the help of the program or of a command",
            vec![words.num_args(0..)],
        ),
    ]
}

/// The arguments of this program that ask for the same help.
pub fn help_arguments(matches: &ArgMatches) -> impl Iterator<Item = String> {
    let [program, help] = ["switchboard", "--help"].map(|word| iter::once(word.to_owned()));
    let words = matches.get_many::<String>("COMMAND").unwrap_or_default();
    program.chain(words.cloned()).chain(help)
}

/// Writes the script that a shell reads.
pub fn write_completions(
    matches: &ArgMatches,
    mut program: Command,
    out: &mut dyn Write,
) -> io::Result<()> {
    let shell = matches.get_one::<Shell>("SHELL");
    // Into memory, because the library panics where a pipe is closed.
    let mut script = Vec::new();
    let shell = *shell.expect("the argument is required");
    clap_complete::generate(shell, &mut program, "switchboard", &mut script);
    out.write_all(&script)
}

/// Writes the manual, as roff.
pub fn write_manual(matches: &ArgMatches, program: Command, out: &mut dyn Write) -> io::Result<()> {
    match path(matches, "DIR") {
        Some(folder) => clap_mangen::generate_to(program, &folder).map_err(|error| {
            io::Error::new(error.kind(), format!("{}: {error}", folder.display()))
        }),
        None => Man::new(program).render(out),
    }
}
