"""TRL's GRPOTrainer with our advantages per turn, and with environments that simulate a user.

from irc_cli.trl import TurnGRPOTrainer, environment, task_rows

trainer = TurnGRPOTrainer(
    model, args=GRPOConfig(...), processing_class=tokenizer,
    train_dataset=Dataset.from_list(task_rows("airline-mini")),
    environment_factory=environment("airline-mini"), calibration="calibration.yaml",
)
"""

from irc_cli.trl.environment import Dialogue, environment, task_rows
from irc_cli.trl.trainer import TurnGRPOTrainer
from irc_cli.trl.turns import TurnAdvantages

__all__ = ["Dialogue", "TurnAdvantages", "TurnGRPOTrainer", "environment", "task_rows"]
