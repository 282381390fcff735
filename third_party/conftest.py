"""Other people's models run on the CPU too; they may broadcast between ranks."""

import jax

jax.config.update("jax_platforms", "cpu")
