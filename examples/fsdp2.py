"""Train an SRNN whose weights are spread over all processes by FSDP2, on GPUs or CPUs, and save it whole.

    torchrun --nproc_per_node 2 fsdp2.py --output trained

The images here are random numbers: put your own batches in the place of `batches`.
"""

import argparse
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F

import srnn_zoo


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="srnn_test_vit", help="any SRNN whose backbone has stages or blocks")
    parser.add_argument("--img-size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=8, help="of all processes together")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--output", default="trained")
    args = parser.parse_args()

    dist.init_process_group()
    rank, processes = dist.get_rank(), dist.get_world_size()
    device = (
        torch.device("cuda", rank % torch.cuda.device_count()) if torch.cuda.is_available() else torch.device("cpu")
    )
    torch.manual_seed(0)  # the same weights everywhere
    model = srnn_zoo.create_model(args.model, num_classes=4, img_size=args.img_size).to(device)
    mesh = init_device_mesh(device.type, (processes,))
    for part in getattr(model.backbone, "stages", None) or model.backbone.blocks:
        fully_shard(part, mesh=mesh)  # gathered whenever a level goes through it
    fully_shard(model, mesh=mesh)  # and the rest: stem, cell, classifier

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for images, targets in batches(args.steps, args.batch_size, args.img_size):
        own = slice(rank * args.batch_size // processes, (rank + 1) * args.batch_size // processes)
        loss = F.cross_entropy(model(images[own].to(device)), targets[own].to(device))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank == 0:
        whole = srnn_zoo.create_model(args.model, num_classes=4, img_size=args.img_size)
        whole.load_state_dict(weights)
        whole.save_pretrained(args.output)
        print(f"saved: srnn-zoo info {args.output}")
    dist.destroy_process_group()


def batches(steps: int, batch_size: int, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The whole batches, the same in every process."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        yield torch.randn(batch_size, 3, size, size, generator=generator), torch.arange(batch_size) % 4


if __name__ == "__main__":
    main()
