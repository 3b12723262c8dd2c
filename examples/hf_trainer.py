"""Fine-tune an SRNN with the Hugging Face Trainer: `python examples/hf_trainer.py FOLDER` (FOLDER/class/*.jpg).

Needs `pip install transformers accelerate`.
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import timm
import torch
from torch import Tensor
from torch.utils.data import Subset
from torchvision.datasets import ImageFolder
from transformers import AutoImageProcessor, AutoModelForImageClassification, Trainer, TrainingArguments

import srnn_zoo


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="one folder a class, images in it; every fifth image is for evaluation")
    parser.add_argument("--model", default="srnn_tf_efficientnet_lite0")
    parser.add_argument("--variant", default="half_gru", choices=srnn_zoo.list_cells())
    parser.add_argument("--size", type=int, default=224, help="of the largest level; the model builds the other one")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--output", default="srnn-trainer", help="folder for the result")
    args = parser.parse_args()

    classes = ImageFolder(args.folder).classes
    start = srnn_zoo.create_model(
        args.model, variant=args.variant, pretrained=True, num_classes=len(classes), img_size=args.size
    )
    with tempfile.TemporaryDirectory() as folder:
        start.save_pretrained(folder, label_names=classes)
        model = AutoModelForImageClassification.from_pretrained(folder)  # transformers' TimmWrapper around the SRNN
        processor = AutoImageProcessor.from_pretrained(folder)

    train_set = ImageFolder(args.folder, processor.train_transforms)
    eval_set = ImageFolder(args.folder, processor.val_transforms)
    held_out = set(range(0, len(train_set), 5))
    trainer = Trainer(
        model,
        TrainingArguments(
            args.output,
            num_train_epochs=args.epochs,
            learning_rate=args.lr,
            lr_scheduler_type="cosine",
            per_device_train_batch_size=args.batch_size,
            per_device_eval_batch_size=args.batch_size,
            eval_strategy="epoch",
            logging_strategy="epoch",
            save_strategy="no",
            report_to="none",
        ),
        data_collator=collate,
        train_dataset=Subset(train_set, sorted(set(range(len(train_set))) - held_out)),
        eval_dataset=Subset(eval_set, sorted(held_out)),
        compute_metrics=accuracy,
    )
    trainer.train()
    trainer.save_model(args.output)

    images = torch.stack([eval_set[index][0] for index in sorted(held_out)[:4]])
    trained = trainer.accelerator.unwrap_model(model).eval().cpu()
    same_by_srnn_zoo = srnn_zoo.SRNN.from_pretrained(args.output).eval()
    same_by_timm = timm.create_model(f"local-dir:{args.output}", pretrained=True).eval()
    with torch.inference_mode():
        logits = trained(images).logits
        torch.testing.assert_close(same_by_srnn_zoo(images), logits)
        torch.testing.assert_close(same_by_timm(images), logits)
    print(f"{args.output} holds an SRNN; srnn_zoo, timm and transformers give the same logits")


def collate(examples: list[tuple[Tensor, int]]) -> dict[str, Tensor]:
    """A batch as the Trainer hands it to the model."""
    images, labels = zip(*examples, strict=True)
    return {"pixel_values": torch.stack(images), "labels": torch.tensor(labels)}


def accuracy(prediction: Any) -> dict[str, float]:
    """What the Trainer reports after every epoch, in per cent."""
    return {"accuracy": 100 * float((prediction.predictions.argmax(1) == prediction.label_ids).mean())}


if __name__ == "__main__":
    main()
