//! The input and output of `connect` on a terminal: a line editor, commands that begin with `/`, and the frames of the
//! relay as sentences above the line that is being typed.

use std::io::{self, Write};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use rustyline::error::ReadlineError;
use rustyline::{Config, DefaultEditor, ExternalPrinter};
use serde_json::{Value, json};

use super::conversation::{InputError, InputSender, Interface};
use super::readable::printable;
use crate::identity::UserId;

const HELP: &str = "\
/to 7         the next lines go to user 7
/to 7 Hello   the same, with a first line
//shrug       a line that begins with /shrug
/quit         leaves, as Ctrl-D and Ctrl-C do";

/// How long the last line may take to the screen.
const PRINT_TIMEOUT: Duration = Duration::from_millis(500);

/// A terminal. Dropping it restores the mode that the editor has changed, because the thread of the editor may still
/// wait for a key.
pub(super) struct Terminal {
    printer: Option<Box<dyn ExternalPrinter + Send>>,
    mode: Option<Termios>,
    editor: JoinHandle<()>,
}

impl Terminal {
    /// Begins to read lines, in a thread of its own.
    pub(super) fn start(typed: InputSender) -> Box<dyn Interface> {
        let mode = tcgetattr(io::stdin()).ok();
        // A paste is a line for each of its lines, as with any other program that reads lines.
        let config = Config::builder()
            .bracketed_paste(false)
            .auto_add_history(true);
        let mut editor = DefaultEditor::with_config(config.build());
        let printer = editor
            .as_mut()
            .ok()
            .and_then(|editor| editor.create_external_printer().ok());
        let editor = thread::spawn(move || {
            let read = editor.and_then(|mut editor| read_lines(&mut editor, &typed));
            if let Err(error) = read {
                // Fails where the conversation has ended, which is then known.
                typed.put(Err(InputError::Terminal(error.to_string())));
            }
        });
        let printer = printer.map(|printer| Box::new(printer) as Box<dyn ExternalPrinter + Send>);
        Box::new(Self {
            printer,
            mode,
            editor,
        })
    }

    fn print(&mut self, line: String) -> io::Result<()> {
        match &mut self.printer {
            Some(printer) => printer.print(line + "\n").map_err(io::Error::other),
            None => writeln!(io::stdout(), "{line}"),
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if self.editor.is_finished() {
            return;
        }
        if let Some(printer) = self.printer.take() {
            finish_printing(printer);
        }
        // Whatever comes next begins in a line of its own, behind the prompt. Both fail where the terminal is gone.
        drop(io::stdout().write_all(b"\r\n"));
        if let Some(mode) = &self.mode {
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, mode);
        }
    }
}

/// Waits until the last line is on the screen. The editor's thread prints, and takes one line at a time: when it has
/// taken the second of two more, it has printed those before.
fn finish_printing(mut printer: Box<dyn ExternalPrinter + Send>) {
    let (end, ended) = mpsc::channel();
    thread::spawn(move || {
        // One row up and one down. An error says that the editor has ended.
        let are_printed = (0..2).all(|_| printer.print("\x1b[A\n".to_owned()).is_ok());
        // Fails after the timeout.
        let _in_time = end.send(are_printed).is_ok();
    });
    // The editor takes nothing while it waits for the connection, which is over.
    let _in_time = ended.recv_timeout(PRINT_TIMEOUT).is_ok();
}

impl Interface for Terminal {
    fn show(&mut self, text: &str, frame: &Value) -> io::Result<()> {
        match sentence(frame) {
            // The end of the connection follows, and is told.
            Some(sentence) if sentence.is_empty() => Ok(()),
            Some(sentence) => self.print(sentence),
            None => self.print(printable(text)),
        }
    }

    fn tell(&mut self, notice: &str) {
        drop(self.print(format!("  {notice}")));
    }
}

/// What a line says.
#[derive(Debug, PartialEq, Eq)]
enum TypedLine {
    Nothing,
    Leave,
    /// An answer of this program.
    Hint(String),
    /// A text for the recipient.
    Text(String),
}

/// Reads until the user leaves.
fn read_lines(editor: &mut DefaultEditor, typed: &InputSender) -> rustyline::Result<()> {
    let mut recipient = None;
    for number in 1_u64.. {
        let prompt = recipient.map_or_else(|| "> ".to_owned(), |id| format!("to {id}> "));
        let line = match editor.readline(&prompt) {
            Ok(line) => line,
            Err(ReadlineError::Eof | ReadlineError::Interrupted) => return Ok(()),
            Err(error) => return Err(error),
        };
        match (parse(&line, &mut recipient), recipient) {
            (TypedLine::Nothing, _) => {}
            (TypedLine::Leave, _) => return Ok(()),
            (TypedLine::Hint(hint), _) => writeln!(io::stdout(), "{hint}")?,
            (TypedLine::Text(_), None) => writeln!(io::stdout(), "to whom? /to 7 chooses user 7")?,
            (TypedLine::Text(message), Some(to)) => {
                // The id returns in the outcome, so that the outcome names the recipient.
                let id = format!("{to}-{number}");
                let frame = json!({"recipient_id": to, "message": message, "id": id});
                if !typed.put(Ok(frame.to_string())) {
                    return Ok(());
                }
            }
        }
    }
    Ok(())
}

fn parse(line: &str, recipient: &mut Option<u64>) -> TypedLine {
    let line = line.trim_end_matches(['\r', '\n']);
    let Some(command) = line.strip_prefix('/') else {
        return if line.trim().is_empty() {
            TypedLine::Nothing
        } else {
            TypedLine::Text(line.to_owned())
        };
    };
    if command.starts_with('/') {
        return TypedLine::Text(command.to_owned());
    }
    let (name, rest) = command.split_once(' ').unwrap_or((command, ""));
    match name {
        "to" => {
            let (id, text) = rest
                .trim_start()
                .split_once(' ')
                .unwrap_or((rest.trim(), ""));
            let id = id.parse().ok().filter(|id| (1..=UserId::MAX).contains(id));
            let Some(id) = id else {
                return TypedLine::Hint(format!(
                    "/to needs a user id from 1 to {}, such as /to 7",
                    UserId::MAX
                ));
            };
            *recipient = Some(id);
            if text.is_empty() {
                TypedLine::Nothing
            } else {
                TypedLine::Text(text.to_owned())
            }
        }
        "quit" | "q" | "exit" => TypedLine::Leave,
        "help" | "?" => TypedLine::Hint(HELP.to_owned()),
        _ => TypedLine::Hint(format!("no command /{}\n{HELP}", printable(name))),
    }
}

/// A frame of the relay as a sentence; none for a frame that this version does not know.
fn sentence(frame: &Value) -> Option<String> {
    let text = |key: &str| Some(printable(frame.get(key)?.as_str()?));
    let number = |key: &str| frame.get(key)?.as_u64();
    Some(match frame.get("type")?.as_str()? {
        "welcome" => {
            let id = number("user_id")?;
            match text("reason") {
                _ if frame.get("resumed")? == true => format!("You are user {id} again."),
                Some(reason) => format!("You are now user {id}: {reason}."),
                None => format!(
                    "You are user {id}. /to 7 chooses user 7 as the recipient, /help lists the commands, Ctrl-D leaves."
                ),
            }
        }
        "message" => match number("sender_id")? {
            0 => format!("system: {}", text("message")?),
            sender => format!("{sender}: {}", text("message")?),
        },
        "outcome" => {
            let (id, status) = (text("id")?, text("status")?);
            let (recipient, _) = id.split_once('-')?;
            match status.as_str() {
                "delivered" => format!("  delivered to {recipient}"),
                // The message may have arrived.
                "unknown" | "disconnected" => {
                    format!("  perhaps not delivered to {recipient}: {status}")
                }
                _ => format!("  not delivered to {recipient}: {status}"),
            }
        }
        "error" => format!("  refused: {}", text("detail")?),
        "dropped" => format!(
            "  {} messages to you were dropped: your mailbox was full",
            number("count")?
        ),
        "reconnect" => String::new(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_text_or_a_command() {
        let text = |text: &str| TypedLine::Text(text.to_owned());
        let mut recipient = None;
        for (line, expected, to) in [
            ("", TypedLine::Nothing, None),
            ("  ", TypedLine::Nothing, None),
            ("Hello", text("Hello"), None),
            ("/to 7", TypedLine::Nothing, Some(7)),
            (" spaced ", text(" spaced "), Some(7)),
            ("/to 8 Hello you", text("Hello you"), Some(8)),
            ("/to  9 ", TypedLine::Nothing, Some(9)),
            ("//shrug", text("/shrug"), Some(9)),
            ("/quit", TypedLine::Leave, Some(9)),
            ("/help", TypedLine::Hint(HELP.to_owned()), Some(9)),
        ] {
            assert_eq!(
                (parse(line, &mut recipient), recipient),
                (expected, to),
                "{line:?}"
            );
        }
        for line in [
            "/to",
            "/to x",
            "/to 0",
            "/to -1",
            "/to 9007199254740992",
            "/t",
            "/",
        ] {
            assert!(
                matches!(parse(line, &mut recipient), TypedLine::Hint(_)),
                "{line:?}"
            );
            assert_eq!(recipient, Some(9));
        }
    }

    #[test]
    fn a_frame_is_a_sentence_without_control_characters() {
        for (frame, expected) in [
            (
                json!({"type": "message", "sender_id": 7, "message": "a\u{1b}[2J\nb"}),
                Some("7: a\\u{1b}[2J\\nb"),
            ),
            (
                json!({"type": "message", "sender_id": 0, "message": "Hi"}),
                Some("system: Hi"),
            ),
            (
                json!({"type": "outcome", "id": "7-1", "status": "delivered"}),
                Some("  delivered to 7"),
            ),
            (
                json!({"type": "outcome", "id": "7-1", "status": "offline"}),
                Some("  not delivered to 7: offline"),
            ),
            (
                json!({"type": "outcome", "id": "7-1", "status": "unknown"}),
                Some("  perhaps not delivered to 7: unknown"),
            ),
            (
                json!({"type": "error", "code": "x", "detail": "too much"}),
                Some("  refused: too much"),
            ),
            (
                json!({"type": "welcome", "user_id": 7, "resumed": true}),
                Some("You are user 7 again."),
            ),
            (
                json!({"type": "welcome", "user_id": 8, "resumed": false, "reason": "ticket_expired"}),
                Some("You are now user 8: ticket_expired."),
            ),
            (json!({"type": "news"}), None),
            (json!(7), None),
        ] {
            assert_eq!(sentence(&frame).as_deref(), expected, "{frame}");
        }
    }
}
