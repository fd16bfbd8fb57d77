"""What a report shows, as plain values: the parts of `stages.report`'s document."""
