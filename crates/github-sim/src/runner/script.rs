//! A job as the stand-in runner gets it: a bash script that sets variables.

use crate::model::Assignment;

/// The script. `nonce` marks the runner's own words among what steps print.
pub(crate) fn script(assignment: &Assignment, nonce: &str) -> String {
    let mut script = String::from("export");
    for (name, value) in &assignment.env {
        script.push_str(&format!(" {name}={}", quoted(value)));
    }
    script.push_str(&format!("\nsim_nonce={nonce} sim_job={}\n", quoted(&assignment.name)));
    script.push_str("sim_scripts=(");
    for (_, run, _) in &assignment.steps {
        script.push_str(&quoted(run));
        script.push(' ');
    }
    script.push_str(")\nsim_always=(");
    for (_, _, always) in &assignment.steps {
        script.push_str(if *always { "1 " } else { "0 " });
    }
    script.push_str(")\n");
    script
}

/// The text as one word of the shell, in ASCII: whether the shell counts bytes or characters, it reads as much
/// as there is.
fn quoted(text: &str) -> String {
    if text.is_ascii() {
        return format!("'{}'", text.replace('\'', r"'\''"));
    }
    let byte = |byte: u8| match byte {
        b'\'' | b'\\' => format!("\\{}", char::from(byte)),
        b' '..=b'~' | b'\n' => char::from(byte).to_string(),
        other => format!("\\x{other:02x}"),
    };
    format!("$'{}'", text.bytes().map(byte).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_becomes_a_script() {
        let assignment = Assignment {
            job: crate::model::JobId(1),
            name: "it's".to_owned(),
            env: [("A".to_owned(), "$x 'y'\n".to_owned())].into(),
            steps: vec![
                ("n".to_owned(), "echo 1".to_owned(), false),
                ("m".to_owned(), "echo 'ü\\'".to_owned(), true),
            ],
        };
        assert_eq!(
            script(&assignment, "abc"),
            "export A='$x '\\''y'\\''\n'\nsim_nonce=abc sim_job='it'\\''s'\n\
             sim_scripts=('echo 1' $'echo \\'\\xc3\\xbc\\\\\\'' )\nsim_always=(0 1 )\n"
        );
    }
}
