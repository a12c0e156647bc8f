"""quickstart: the model, the data of one partition, training and testing."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Net(nn.Module):
    """A small convolutional network for images of 8 x 8 pixels."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8 * 4 * 4, 10)

    def forward(self, x):
        return self.fc(torch.relu(self.norm(self.conv(x))).flatten(1))


def load_data(partition_id, num_partitions):
    """Train and test loader of one partition."""
    digits = load_digits()
    images = torch.tensor(digits.images[partition_id::num_partitions], dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(digits.target[partition_id::num_partitions])
    cut = int(len(labels) * 0.8)
    train_set = TensorDataset(images[:cut], labels[:cut])
    return (
        DataLoader(train_set, batch_size=32, shuffle=True),
        DataLoader(TensorDataset(images[cut:], labels[cut:]), batch_size=32),
    )


def train(net, trainloader, epochs, lr):
    """Trains and returns the mean loss."""
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    net.train()
    running_loss = 0.0
    for _ in range(epochs):
        for images, labels in trainloader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(images), labels)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
    return running_loss / (epochs * len(trainloader))


def test(net, testloader):
    """Loss and accuracy."""
    net.eval()
    correct, loss = 0, 0.0
    with torch.no_grad():
        for images, labels in testloader:
            outputs = net(images)
            loss += nn.functional.cross_entropy(outputs, labels, reduction="sum").item()
            correct += (outputs.argmax(1) == labels).sum().item()
    return loss / len(testloader.dataset), correct / len(testloader.dataset)
