//! What the command line says of itself: `help`, `completions` and `man`.

use std::io::{self, Write};
use std::iter;
use std::path::PathBuf;

use clap::{Args, Command};
use clap_complete::Shell;
use clap_mangen::Man;

/// The commands of `help`.
#[derive(Debug, Args)]
pub struct HelpArguments {
    /// The command, such as `token issue`; none: the whole program
    command: Vec<String>,
}

/// The arguments of `completions`.
#[derive(Debug, Args)]
pub struct CompletionArguments {
    /// The shell
    shell: Shell,
}

/// The arguments of `man`.
#[derive(Debug, Args)]
pub struct ManArguments {
    /// Write the pages of the program and of each command into this folder, instead of the first one to stdout
    #[arg(value_name = "DIR")]
    folder: Option<PathBuf>,
}

impl HelpArguments {
    /// The arguments of this program that ask for the same help.
    pub fn arguments(self) -> impl Iterator<Item = String> {
        let [program, help] = ["switchboard", "--help"].map(|word| iter::once(word.to_owned()));
        program.chain(self.command).chain(help)
    }
}

impl CompletionArguments {
    /// Writes the script that a shell reads.
    pub fn write(self, mut program: Command, out: &mut dyn Write) -> io::Result<()> {
        // Into memory, because the library panics where a pipe is closed.
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut program, "switchboard", &mut script);
        out.write_all(&script)
    }
}

impl ManArguments {
    /// Writes the manual, as roff.
    pub fn write(self, program: Command, out: &mut dyn Write) -> io::Result<()> {
        match self.folder {
            Some(folder) => clap_mangen::generate_to(program, &folder).map_err(|error| {
                io::Error::new(error.kind(), format!("{}: {error}", folder.display()))
            }),
            None => Man::new(program).render(out),
        }
    }
}
