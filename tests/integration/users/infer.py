"""Classify images in batches with a PyTorch model, on the CPU."""

from concurrent.futures import ThreadPoolExecutor as Executor

import torch

torch.manual_seed(13)
torch.set_num_threads(1)
model = torch.nn.Sequential(
    torch.nn.Conv2d(3, 8, 3, stride=2),
    torch.nn.ReLU(),
    torch.nn.Flatten(),
    torch.nn.Linear(8 * 15 * 15, 10),
).eval()


@torch.inference_mode()
def classify(images):
    return model(images).argmax(dim=1)


images = torch.rand(256, 3, 32, 32)
with Executor(2) as ex:
    classes = torch.cat(list(ex.map(classify, images.split(64))))
print(classes.shape, classes.bincount(minlength=10))
