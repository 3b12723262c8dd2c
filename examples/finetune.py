"""Fine-tune a zero-shot SRNN on a folder of images: `python examples/finetune.py FOLDER` (FOLDER/class/*.jpg)."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from tqdm import tqdm

import srnn_zoo
from srnn_zoo.datasets.readers import class_folders


class Photos(ImageFolder):
    """`ImageFolder` without hidden folders, such as `.ipynb_checkpoints`."""

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        classes = [folder.name for folder in class_folders(Path(directory))]
        return classes, {name: index for index, name in enumerate(classes)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", help="a folder for each class, with images in it")
    parser.add_argument("--model", default="srnn_tf_efficientnet_lite0")
    parser.add_argument("--variant", default="half_gru", choices=srnn_zoo.list_cells())
    parser.add_argument("--sizes", type=int, nargs="+", default=(112, 224), help="of the levels, smallest first")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--output", default="srnn-finetuned", help="folder of the saved model")
    args = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    classes = Photos(args.folder).classes
    scales = [size / args.sizes[-1] for size in args.sizes]
    model = srnn_zoo.create_model(
        args.model, variant=args.variant, scales=scales, pretrained=True, num_classes=len(classes)
    ).to(device)
    dataset = Photos(args.folder, srnn_zoo.create_transform(model, train=True, sizes=args.sizes))
    full_batches = len(dataset) > args.batch_size  # batch norm does not like a last batch of one
    loader = DataLoader(dataset, batch_size=args.batch_size, shuffle=True, num_workers=2, drop_last=full_batches)
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9, nesterov=True, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=args.epochs * len(loader))

    for epoch in range(args.epochs):
        correct = seen = 0
        for levels, targets in tqdm(loader, desc=f"epoch {epoch + 1} of {args.epochs}", unit="batch"):
            logits = model([level.to(device) for level in levels])
            loss = F.cross_entropy(logits, targets.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            correct += (logits.argmax(1).cpu() == targets).sum().item()
            seen += len(targets)
        print(f"epoch {epoch + 1}: training accuracy {100 * correct / max(1, seen):.1f} %")
    model.save_pretrained(args.output, label_names=classes)
    print(f"saved: srnn-zoo predict IMAGE --model {args.output}")


if __name__ == "__main__":
    main()
