"""torchvision's Inception-v3 and GoogLeNet, and BN-Inception as converted from Caffe, in torch.

Written from their layer tables, for torchvision has no small build: the names and shapes of their
state dicts, so that real files load, and their arithmetic. Checked once, by hand, against the
networks of torchvision 0.29.1, timm 1.0.31 and pretrainedmodels 0.7.4: equal state dicts, outputs
equal to 3e-7 of the largest in either mode. In training they return the main logits
and those of the side heads, without dropout, which would draw other masks.
"""

import torch
import torch.nn.functional as F
from made_weights import MODULES
from torch import nn


class Block(nn.Module):
    """Convolution, batch normalization, ReLU."""

    def __init__(self, inputs, outputs, kernel, stride=1, padding=None):
        super().__init__()
        kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = padding or tuple(k // 2 for k in kernel)
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)))


def valid(inputs, outputs, kernel, stride=1):
    return Block(inputs, outputs, kernel, stride, "valid")


class Branches(nn.Module):
    """Chains of blocks side by side, named by the caller; what they return is concatenated."""

    def __init__(self, **blocks):
        super().__init__()
        for name, block in blocks.items():
            self.add_module(name, block)

    def chain(self, x, *names):
        for name in names:
            x = self.get_submodule(name)(x)
        return x

    def pooled(self, x):
        return self.branch_pool(F.avg_pool2d(x, 3, stride=1, padding=1))


class MixedA(Branches):
    def __init__(self, inputs, project):
        super().__init__(
            branch1x1=Block(inputs, 64, 1),
            branch5x5_1=Block(inputs, 48, 1),
            branch5x5_2=Block(48, 64, 5),
            branch3x3dbl_1=Block(inputs, 64, 1),
            branch3x3dbl_2=Block(64, 96, 3),
            branch3x3dbl_3=Block(96, 96, 3),
            branch_pool=Block(inputs, project, 1),
        )

    def forward(self, x):
        five = self.chain(x, "branch5x5_1", "branch5x5_2")
        three = self.chain(x, "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3")
        return torch.cat([self.branch1x1(x), five, three, self.pooled(x)], 1)


class MixedB(Branches):
    def __init__(self, inputs):
        super().__init__(
            branch3x3=valid(inputs, 384, 3, 2),
            branch3x3dbl_1=Block(inputs, 64, 1),
            branch3x3dbl_2=Block(64, 96, 3),
            branch3x3dbl_3=valid(96, 96, 3, 2),
        )

    def forward(self, x):
        double = self.chain(x, "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3")
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, 2)], 1)


class MixedC(Branches):
    def __init__(self, c):
        super().__init__(
            branch1x1=Block(768, 192, 1),
            branch7x7_1=Block(768, c, 1),
            branch7x7_2=Block(c, c, (1, 7)),
            branch7x7_3=Block(c, 192, (7, 1)),
            branch7x7dbl_1=Block(768, c, 1),
            branch7x7dbl_2=Block(c, c, (7, 1)),
            branch7x7dbl_3=Block(c, c, (1, 7)),
            branch7x7dbl_4=Block(c, c, (7, 1)),
            branch7x7dbl_5=Block(c, 192, (1, 7)),
            branch_pool=Block(768, 192, 1),
        )

    def forward(self, x):
        seven = self.chain(x, *(f"branch7x7_{i}" for i in (1, 2, 3)))
        double = self.chain(x, *(f"branch7x7dbl_{i}" for i in (1, 2, 3, 4, 5)))
        return torch.cat([self.branch1x1(x), seven, double, self.pooled(x)], 1)


class MixedD(Branches):
    def __init__(self):
        super().__init__(
            branch3x3_1=Block(768, 192, 1),
            branch3x3_2=valid(192, 320, 3, 2),
            branch7x7x3_1=Block(768, 192, 1),
            branch7x7x3_2=Block(192, 192, (1, 7)),
            branch7x7x3_3=Block(192, 192, (7, 1)),
            branch7x7x3_4=valid(192, 192, 3, 2),
        )

    def forward(self, x):
        three = self.chain(x, "branch3x3_1", "branch3x3_2")
        seven = self.chain(x, *(f"branch7x7x3_{i}" for i in (1, 2, 3, 4)))
        return torch.cat([three, seven, F.max_pool2d(x, 3, 2)], 1)


class MixedE(Branches):
    def __init__(self, inputs):
        super().__init__(
            branch1x1=Block(inputs, 320, 1),
            branch3x3_1=Block(inputs, 384, 1),
            branch3x3_2a=Block(384, 384, (1, 3)),
            branch3x3_2b=Block(384, 384, (3, 1)),
            branch3x3dbl_1=Block(inputs, 448, 1),
            branch3x3dbl_2=Block(448, 384, 3),
            branch3x3dbl_3a=Block(384, 384, (1, 3)),
            branch3x3dbl_3b=Block(384, 384, (3, 1)),
            branch_pool=Block(inputs, 192, 1),
        )

    def forward(self, x):
        three = self.branch3x3_1(x)
        double = self.chain(x, "branch3x3dbl_1", "branch3x3dbl_2")
        pairs = [self.branch3x3_2a(three), self.branch3x3_2b(three)]
        pairs += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)]
        return torch.cat([self.branch1x1(x), *pairs, self.pooled(x)], 1)


class AuxiliaryV3(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.conv0 = Block(768, 128, 1)
        self.conv1 = valid(128, 768, 5)
        self.fc = nn.Linear(768, classes)

    def forward(self, x):
        x = self.conv1(self.conv0(F.avg_pool2d(x, 5, 3)))
        return self.fc(x.mean((2, 3)))


class InceptionV3(nn.Module):
    def __init__(self, classes, auxiliary):
        super().__init__()
        self.Conv2d_1a_3x3 = valid(3, 32, 3, 2)
        self.Conv2d_2a_3x3 = valid(32, 32, 3)
        self.Conv2d_2b_3x3 = Block(32, 64, 3)
        self.Conv2d_3b_1x1 = Block(64, 80, 1)
        self.Conv2d_4a_3x3 = valid(80, 192, 3)
        self.Mixed_5b = MixedA(192, 32)
        self.Mixed_5c = MixedA(256, 64)
        self.Mixed_5d = MixedA(288, 64)
        self.Mixed_6a = MixedB(288)
        self.Mixed_6b = MixedC(128)
        self.Mixed_6c = MixedC(160)
        self.Mixed_6d = MixedC(160)
        self.Mixed_6e = MixedC(192)
        if auxiliary:
            self.AuxLogits = AuxiliaryV3(classes)
        self.Mixed_7a = MixedD()
        self.Mixed_7b = MixedE(1280)
        self.Mixed_7c = MixedE(2048)
        self.fc = nn.Linear(2048, classes)

    def forward(self, x):
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, 2))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        heads = []
        if self.training and hasattr(self, "AuxLogits"):
            heads.append(self.AuxLogits(x))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        return self.fc(x.mean((2, 3))), *heads


class V1Module(nn.Module):
    def __init__(self, inputs, one, three_reduce, three, five_reduce, five, project):
        super().__init__()
        self.branch1 = Block(inputs, one, 1)
        self.branch2 = nn.Sequential(Block(inputs, three_reduce, 1), Block(three_reduce, three, 3))
        self.branch3 = nn.Sequential(Block(inputs, five_reduce, 1), Block(five_reduce, five, 3))
        pool = nn.MaxPool2d(3, stride=1, padding=1, ceil_mode=True)
        self.branch4 = nn.Sequential(pool, Block(inputs, project, 1))

    def forward(self, x):
        return torch.cat([branch(x) for branch in self.children()], 1)


class AuxiliaryV1(nn.Module):
    def __init__(self, inputs, classes):
        super().__init__()
        self.conv = Block(inputs, 128, 1)
        self.fc1 = nn.Linear(2048, 1024)
        self.fc2 = nn.Linear(1024, classes)

    def forward(self, x):
        x = self.conv(F.adaptive_avg_pool2d(x, (4, 4))).flatten(1)
        return self.fc2(F.relu(self.fc1(x)))


class GoogLeNet(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.conv1 = Block(3, 64, 7, 2)
        self.conv2 = Block(64, 64, 1)
        self.conv3 = Block(64, 192, 3)
        for name, widths in MODULES.items():
            self.add_module(f"inception{name}", V1Module(*widths))
        self.aux1 = AuxiliaryV1(512, classes)
        self.aux2 = AuxiliaryV1(528, classes)
        self.fc = nn.Linear(1024, classes)

    def forward(self, x):
        x = F.max_pool2d(self.conv1(x), 3, 2, ceil_mode=True)
        x = F.max_pool2d(self.conv3(self.conv2(x)), 3, 2, ceil_mode=True)
        heads = []
        for name in MODULES:
            x = self.get_submodule(f"inception{name}")(x)
            if name in ("4a", "4d") and self.training:
                heads.append((self.aux1 if name == "4a" else self.aux2)(x))
            if name in ("3b", "4e"):
                x = F.max_pool2d(x, 3 if name == "3b" else 2, 2, ceil_mode=True)
        return self.fc(x.mean((2, 3))), *heads


BN_INCEPTION = {  # inputs, 1x1, 3x3 reduce, 3x3, double reduce, double, pool projection
    "3a": (192, 64, 64, 64, 64, 96, 32),
    "3b": (256, 64, 64, 96, 64, 96, 64),
    "3c": (320, 0, 128, 160, 64, 96, 0),
    "4a": (576, 224, 64, 96, 96, 128, 128),
    "4b": (576, 192, 96, 128, 96, 128, 128),
    "4c": (576, 160, 128, 160, 128, 160, 128),
    "4d": (608, 96, 128, 192, 160, 192, 128),
    "4e": (608, 0, 128, 192, 192, 256, 0),
    "5a": (1056, 352, 192, 320, 160, 224, 128),
    "5b": (1024, 352, 192, 320, 192, 224, 128),
}


class BNInception(nn.Module):
    """Flat, convolutions with a bias, and epsilon 1e-5; blocks' outputs go through `seen`."""

    def __init__(self, classes):
        super().__init__()
        self.layer("conv1_7x7_s2", 3, 64, 7, 2)
        self.layer("conv2_3x3_reduce", 64, 64, 1)
        self.layer("conv2_3x3", 64, 192, 3)
        for name, (inputs, one, three_r, three, double_r, double, project) in BN_INCEPTION.items():
            at, stride = f"inception_{name}_", 1 if project else 2
            if one:
                self.layer(at + "1x1", inputs, one, 1)
            self.layer(at + "3x3_reduce", inputs, three_r, 1)
            self.layer(at + "3x3", three_r, three, 3, stride)
            self.layer(at + "double_3x3_reduce", inputs, double_r, 1)
            self.layer(at + "double_3x3_1", double_r, double, 3)
            self.layer(at + "double_3x3_2", double, double, 3, stride)
            if project:
                self.layer(at + "pool_proj", inputs, project, 1)
        self.last_linear = nn.Linear(1024, classes)
        stem = ("conv1_7x7_s2", "conv2_3x3_reduce", "conv2_3x3")
        self.seen = nn.ModuleDict({name: nn.Identity() for name in (*stem, *BN_INCEPTION)})

    def layer(self, name, inputs, outputs, kernel, stride=1):
        self.add_module(name, nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2))
        self.add_module(name + "_bn", nn.BatchNorm2d(outputs, eps=1e-5))

    def chain(self, x, at, *names):
        for name in names:
            conv, norm = self.get_submodule(at + name), self.get_submodule(at + name + "_bn")
            x = F.relu(norm(conv(x)))
            if at + name in self.seen:
                x = self.seen[at + name](x)
        return x

    def forward(self, x):
        x = F.max_pool2d(self.chain(x, "conv1_", "7x7_s2"), 3, 2, ceil_mode=True)
        x = self.chain(x, "conv2_", "3x3_reduce", "3x3")
        x = F.max_pool2d(x, 3, 2, ceil_mode=True)
        for name, (_, one, *_, project) in BN_INCEPTION.items():
            at = f"inception_{name}_"
            branches = [self.chain(x, at, "1x1")] if one else []
            branches.append(self.chain(x, at, "3x3_reduce", "3x3"))
            double = ("double_3x3_reduce", "double_3x3_1", "double_3x3_2")
            branches.append(self.chain(x, at, *double))
            if not project:
                branches.append(F.max_pool2d(x, 3, 2, ceil_mode=True))
            elif name == "5b":
                branches.append(self.chain(F.max_pool2d(x, 3, 1, 1), at, "pool_proj"))
            else:
                branches.append(self.chain(F.avg_pool2d(x, 3, 1, 1), at, "pool_proj"))
            x = self.seen[name](torch.cat(branches, 1))
        return (self.last_linear(x.mean((2, 3))),)


def draw(network, seed):
    """Weights and statistics that keep the size of activations, none of them zero or one.

    A bias around one keeps most ReLUs open. Otherwise rounding errors grow from block to block,
    and in training mode float32 itself is 1e-4 off float64 at the end.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor, scale, shift=0.0):
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale + shift)

    def uniform(tensor):
        tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)

    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                normal(module.weight, (2 / module.weight[0].numel()) ** 0.5)
                if module.bias is not None:
                    normal(module.bias, 0.3)
            elif isinstance(module, nn.BatchNorm2d):
                uniform(module.weight)
                normal(module.bias, 0.3, 1.0)
                normal(module.running_mean, 0.3)
                uniform(module.running_var)
    return network
