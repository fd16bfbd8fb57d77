"""The parts of `stages.report`'s document, as plain values."""
