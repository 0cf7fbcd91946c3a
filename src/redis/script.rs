//! Lua scripts, which Redis runs as one step. Sent by their hash, in full when Redis does not know it.

use redis::{Cmd, FromRedisValue, cmd};

use super::connection::{Access, CallError, Connection};

pub struct Script {
    /// Which operation it counts as.
    operation: &'static str,
    access: Access,
    script: redis::Script,
    code: String,
}

impl Script {
    pub fn new(operation: &'static str, access: Access, code: &str) -> Self {
        // What the scripts share.
        let code = format!("{}\n{code}", include_str!("common.lua"));
        Self { operation, access, script: redis::Script::new(&code), code }
    }

    /// `add_arguments`: to the command, after the keys.
    pub async fn run<T: FromRedisValue>(
        &self,
        connection: &Connection,
        keys: &[&str],
        add_arguments: impl Fn(&mut Cmd),
    ) -> Result<T, CallError> {
        let call = |name: &str, script: &str| {
            let mut call = cmd(name);
            call.arg(script).arg(keys.len()).arg(keys);
            add_arguments(&mut call);
            call
        };
        let by_hash = call("EVALSHA", self.script.get_hash());
        match connection.query(self.operation, self.access, &by_hash).await {
            Err(CallError::NoScript) => connection.query(self.operation, self.access, &call("EVAL", &self.code)).await,
            answer => answer,
        }
    }
}
